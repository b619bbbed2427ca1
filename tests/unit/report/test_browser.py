"""The report in a real browser: no complaint, no request, readable on a phone, both schemes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Iterator

import pytest

from orchestrator.report.gathering import gather
from orchestrator.report.page import report_page
from tests.unit.report.chromium import NAMES, Chromium, find_chromium
from tests.unit.report.made_run import START, made_run
from tests.unit.report.test_page import HOSTILE, compared

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"there is none of {', '.join(NAMES)}")

_PLACE = """(() => {{
  const box = document.getElementById("chart-{chart}");
  box.scrollIntoView({{block: "center"}});
  const at = box.querySelector("svg").getBoundingClientRect();
  return [at.x, at.y, at.width, at.height];
}})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert PROGRAM is not None
    chromium = Chromium(PROGRAM)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    folder: Path = tmp_path_factory.mktemp("pages")
    names = [f"192.168.0.{n}" for n in range(11)] + ["a-host-with-a-long-name." * 3 + "example"]
    evidence = [{"processes": "0-95", "line": HOSTILE * 3, "time": "t", "count": 3}]
    cause = {"found": True, "headline": "x" * 300, "line": "y" * 500, "reason": HOSTILE}
    cause["evidence"] = evidence
    paths = made_run(
        folder / "big", steps=300, host_names=names, slow_hosts=[3], failed_rank=17,
        ended="failed", nan_at=290,
    )  # fmt: skip
    pages = {
        "failed": report_page(gather(paths, cause), START + 500, "1.0"),
        "small": report_page(
            gather(made_run(folder / "s", hosts=1, per_host=2, steps=5), None), START + 50, "1.0"
        ),
        "empty": report_page(
            gather(made_run(folder / "e", hosts=1, per_host=1, steps=0), None), START + 50, "1.0"
        ),
        "compared": compared(folder / "c"),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["failed", "small", "empty", "compared"])
def test_it_is_shown_well(browser, files, name, width, dark):
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(files[name], width=width, dark=dark)
    assert browser.value("document.documentElement.dataset.ready") == "yes"
    assert browser.complaints == []
    assert browser.requests == [files[name].as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width
    wide = browser.value(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, pre, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML)"
    )
    assert wide == []
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 21, 26)") == dark
    png = browser.screenshot()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20])[0] == width


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_their_ground(browser, files, dark):
    """At least 4.5 to 1, as the WCAG asks of texts."""
    browser.open(files["failed"], width=1280, dark=dark)
    ratios = browser.value("""(() => {
      const light = (color) => {
        const parts = color.match(/[\\d.]+/g).slice(0, 3).map((v) => {
          v /= 255;
          return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
      };
      const ground = light(getComputedStyle(document.querySelector(".card")).backgroundColor);
      const out = {};
      const names = ".soft, .good, .warn, .bad, .plain, dd, dt, th, td, .chart text, .label";
      for (const e of document.querySelectorAll(names)) {
        if (!e.textContent.trim()) continue;
        const style = getComputedStyle(e);
        const text = light(e.closest("svg") ? style.fill : style.color);
        const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        if (ratio < 4.5) out[e.className.baseVal || e.className || e.tagName] = ratio;
      }
      return out;
    })()""")
    assert ratios == {}


def test_the_charts_tell_what_is_under_the_pointer(browser, files):
    browser.complaints.clear()
    browser.open(files["failed"], width=1280)
    said = {}
    for chart in ("loss", "speed", "ranks", "lanes"):
        x, y, width, height = browser.value(_PLACE.format(chart=chart))
        browser.hover(x + width * 0.5, y + height * 0.4)
        said[chart] = browser.value(f"document.querySelector('#chart-{chart} .tip').innerText")
    assert "step 1" in said["loss"]
    assert "median" in said["speed"]
    assert "lowest 5" in said["speed"]
    assert "rank 4" in said["ranks"]
    assert "12 × train" in said["lanes"]
    assert browser.complaints == []


def test_the_log_scale_and_the_keyboard(browser, files):
    browser.open(files["failed"], width=1280)
    before = browser.value("document.querySelector('#chart-loss .middle').getAttribute('d')")
    browser.value("document.getElementById('log-loss').click()")
    after = browser.value("document.querySelector('#chart-loss .middle').getAttribute('d')")
    assert before != after
    assert "NaN" not in before + after
    browser.value(
        "(() => { const s = document.querySelector('#chart-loss svg'); s.focus();"
        " s.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'})); })()"
    )
    assert "step 1\n" in browser.value("document.querySelector('#chart-loss .tip').innerText")


def test_a_page_that_was_tampered_with_runs_nothing(browser, files, tmp_path):
    text = files["small"].read_text("utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(
        text.replace("<main>", "<main><script>document.title = 'owned'</script>"
                     "<img src='data:,x' onerror=\"document.title = 'owned'\">"), "utf-8",
    )  # fmt: skip
    browser.complaints.clear()
    browser.open(bad, width=1280)
    assert browser.value("document.title") != "owned"
    assert any("Content Security Policy" in one for one in browser.complaints)
