"""A report as one HTML file that needs nothing else: no network, no other file.

Only our own script and style may run in it (a content security policy names their digests), and
every value is escaped, so that no log line and no host name can put anything into the page.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from datetime import datetime
from typing import Any, Dict, Mapping

import jinja2
from markupsafe import Markup

from orchestrator.report.comparison import comparison_values
from orchestrator.report.gathering import Gathered
from orchestrator.report.story import report_values
from orchestrator.resources import resource_dir


def report_page(run: Gathered, now: float, version: str) -> str:
    """The report of one run; ``now`` is in Unix seconds, ``version`` that of glm2-orch."""
    values = report_values(run, now)
    return _page("report.html.j2", values, f"run {values['run_id']}", now, version)


def comparison_page(a: Gathered, b: Gathered, now: float, version: str) -> str:
    """Two runs side by side."""
    values = comparison_values(a, b, now)
    title = f"{values['a']} and {values['b']}"
    return _page("report-compare.html.j2", values, title, now, version)


def _page(template: str, values: Mapping[str, Any], title: str, now: float, version: str) -> str:
    style, script = _resource("report.css"), _resource("report.js")
    made = datetime.fromtimestamp(now).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    fixed: Dict[str, Any] = {
        "title": title,
        "style": Markup(style),
        "style_digest": _digest(style),
        "script": Markup(script),
        "script_digest": _digest(script),
        "data": embedded(values["data"]),
        "made": f"made {made} by glm2-orch {version}",
    }
    return _environment().get_template(template).render({**values, **fixed})


def embedded(data: object) -> Markup:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _resource(name: str) -> str:
    return (resource_dir("templates") / name).read_text("utf-8")


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_dir("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    )
