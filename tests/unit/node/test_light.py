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


@pytest.mark.parametrize("text", ["", "{", '{"a":1} x', '{"a":1', "{'a':1}", '["\\ud'])
def test_an_error_is_json_s_own_though_it_is_not_loaded(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    program = f"try: light.loads({text!r})\nexcept ValueError as error: print(error)"
    assert _run(f"from node import light\n{program}") == str(expected.value)


def test_arming_loads_nothing_heavy() -> None:
    """All that the command ``arm`` and the supervisor behind it import."""
    program = "import sys, node.commands, node.daemon\nprint(*sys.modules)"
    loaded = set(_run(program).split())
    assert {"node.supervision", "node.light"} <= loaded
    assert not loaded & HEAVY


def _run(program: str) -> str:
    """What it prints, in a Python without site packages, as hosts run the node side."""
    folder = Path(orchestrator.__path__[0])
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", start + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
