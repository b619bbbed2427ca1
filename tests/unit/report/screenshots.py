"""Makes the pictures in ``docs/images``: ``python -m tests.unit.report.screenshots [--run ID]``.

Needs Chromium. The runs of 96 and 1,000 ranks are made up; ``--run`` takes a picture of the
report of a real one of ``$GLM2_ORCH_HOME``.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.diagnosis.report import record
from orchestrator.engine.diagnose import diagnose_run, tables
from orchestrator.report.gathering import gather
from orchestrator.report.live import view
from orchestrator.report.page import report_page
from orchestrator.report.reading import RunReader
from orchestrator.runs.layout import RunPaths, RunStore, home
from tests.unit.report.chromium import Chromium, find_chromium
from tests.unit.report.made_run import START, made_run

IMAGES = Path(__file__).parents[3] / "docs" / "images"
MOST_BYTES = 300_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", help="also the report of this real run")
    options = arguments.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit("there is no Chromium on this machine")
    IMAGES.mkdir(exist_ok=True)
    browser = Chromium(program)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pictures(browser, Path(folder))
            if options.run:
                paths = RunStore(home()).resolve(options.run)
                page(browser, paths, Path(folder), "report-real.png", 1500, dark=False)
    finally:
        browser.close()


def pictures(browser: Chromium, folder: Path) -> None:
    told = {"rule": "straggler", "evidence": {"kind": "host", "name": "192.168.0.3", "ratio": 1.45}}
    small = made_run(
        folder / "96", steps=400, slow_hosts=[3], silent_hosts=[9],
        decisions=[{"action": "tell", **told}],
    )  # fmt: skip
    live(browser, small, folder, "live-96.png")
    large = made_run(folder / "1000", hosts=125, slow_hosts=[30], failed_rank=88)
    live(browser, large, folder, "live-1000.png")
    failed = made_run(
        folder / "failed", steps=500, slow_hosts=[3], failed_rank=17, ended="failed",
        decisions=[{"action": "tell", **told}],
    )  # fmt: skip
    failed.logs.mkdir()
    failed.log("rank_17").write_text(
        "[ERROR] GE(71,python):2027-01-15-08:12:50.781.599 [x.cc:50] call aclrtMalloc failed\n"
        "EL0004: 2027-01-15-08:12:50.781.599 Failed to allocate memory.\n"
    )
    page(browser, failed, folder, "report-light.png", 1500, dark=False)
    page(browser, failed, folder, "report-dark.png", 1500, dark=True)
    page(browser, failed, folder, "report-phone.png", 1500, dark=False, width=390)


def live(browser: Chromium, paths: RunPaths, folder: Path, name: str) -> None:
    """The live view of a terminal of 80 × 24."""
    shot = RunReader(paths).read()
    shot = replace(shot, state=replace(shot.state, controller={"pid": 1}))
    now = max(host.heard or START for host in shot.state.hosts) + 1.0
    console = Console(width=80, height=24, record=True, file=io.StringIO(), force_terminal=True)
    console.print(view(shot, 80, 24, now))
    console.print(Text())
    svg = console.export_svg(title="glm2-orch status --watch")
    svg = re.sub(r"@font-face\s*\{[^}]*\}", "", svg).replace("Fira Code", "DejaVu Sans Mono")
    file = folder / f"{name}.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{svg}", "utf-8")
    browser.open(file, width=1000, height=100)
    save(name, browser.screenshot())


def page(
    browser: Chromium, paths: RunPaths, folder: Path, name: str, height: int, *, dark: bool,
    width: int = 1180,
) -> None:  # fmt: skip
    failed = RunReader(paths).read().state.status.value == "failed"
    cause = record(diagnose_run(paths, tables())) if failed else None
    file = folder / f"{name}.html"
    shot = gather(paths, cause)
    now = (shot.shot.state.ended or START) + 60.0
    file.write_text(report_page(shot, now, version("glm2-orch")), "utf-8")
    browser.open(file, width=width, height=height, dark=dark)
    save(name, browser.screenshot(whole=False))


def save(name: str, png: bytes) -> None:
    assert len(png) < MOST_BYTES, f"{name} has {len(png)} bytes"
    (IMAGES / name).write_bytes(png)
    print(f"docs/images/{name}: {len(png) >> 10} KiB")


if __name__ == "__main__":
    main()
