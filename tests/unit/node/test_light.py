"""Arming loads little, and what stands in for the rest does the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator
from orchestrator.node import light
from tests.cluster.node.conftest import any_python  # noqa: F401 - a fixture

HEAVY = {"collections", "contextlib", "ctypes", "enum", "json", "re", "signal", "socket", "typing"}

_floats = st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | _floats | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_a_line_is_what_json_writes(value: object) -> None:
    line = light.dumps(value)
    assert line == json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
    assert light.loads(line.decode("ascii")) == value


@given(values, st.integers(0, 40))
def test_it_reads_what_json_reads(value: object, cut: int) -> None:
    text = json.dumps(value, indent=1)[cut:]
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(json.JSONDecodeError):
            light.loads(text)
    else:
        assert light.loads(text) == expected


BAD = ["", "{", '{"a":1} x', '{"a":1', "{'a':1}", '["\\ud', "\ufeff{}", "[" + 3000 * "[", '{"a" 1}']


def test_an_error_is_json_s_own_though_it_is_not_loaded(any_python: str) -> None:  # noqa: F811
    """Each text in a fresh process: the first error loads ``json``."""
    said = "try: {}.loads(text)\nexcept Exception as error: print(ascii((type(error), str(error))))"
    for text in BAD:
        program = (
            f"text = {text!a}\n" + said.format("light") + "\nimport json\n" + said.format("json")
        )
        ours, expected = _run(any_python, f"from node import light\n{program}").splitlines()
        assert ours == expected


def test_arming_loads_nothing_heavy(any_python: str) -> None:  # noqa: F811
    """All that the command ``arm`` and the supervisor behind it import."""
    program = "import sys, node.commands, node.daemon\nprint(*sys.modules)"
    loaded = set(_run(any_python, program).split())
    assert {"node.supervision", "node.light"} <= loaded
    assert not loaded & HEAVY


def test_a_debug_build_of_python_reads_with_json_alone() -> None:
    """It would abort in the C scanner, which tells of an error by words that ``json`` has."""
    program = "import sys; sys.gettotalrefcount = int\nfrom node import light\n"
    program += "print(light.loads('[1]'), 'json' in sys.modules)"
    assert _run(sys.executable, program) == "[1] True"


def _run(python: str, program: str) -> str:
    """What it prints, in a Python without site packages, as hosts run the node side."""
    folder = Path(orchestrator.__path__[0])
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    command = [python, "-S", "-c", start + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
