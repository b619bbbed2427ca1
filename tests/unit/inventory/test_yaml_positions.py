"""YAML that remembers where everything stood."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Location
from orchestrator.problems import Problems
from orchestrator.yaml_positions import Document, dump, load, parse_scalar


def read(text: str) -> Document:
    problems = Problems()
    document = load(text, "f.yaml", problems)
    assert document is not None, problems.found
    return document


def test_every_value_has_a_place() -> None:
    document = read("a:\n  b: [1, {c: x}]\n")
    assert document.value == {"a": {"b": [1, {"c": "x"}]}}
    assert document.locations[("a", "b", "1", "c")] == Location("f.yaml", 2, 14)
    assert document.place(("a", "b", "7")) == Location("f.yaml", 2, 6)


def test_an_alias_is_the_same_object_as_its_anchor() -> None:
    value = read("a: &x {n: 1}\nb: *x\n").value
    assert isinstance(value, dict)
    assert value["a"] is value["b"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5.e-5", 5e-5),
        ("-1E+3", -1000.0),
        (".5e1", 5.0),
        ("1.0", 1.0),
        ("12", 12),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("[1, 2]", [1, 2]),
        ("", ""),
        ("true", True),
        ("'1'", "1"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["[1", "a: b: c", "!!python/name:os.system x", "0b"])
def test_what_is_not_yaml(text: str) -> None:
    if text == "0b":
        assert parse_scalar(text) == "0b"
        return
    with pytest.raises(ValueError, match=r"."):
        parse_scalar(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(values)
def test_what_is_dumped_is_read_back_here_and_by_any_yaml_reader(value: object) -> None:
    text = dump(value)
    assert read(text).value == value
    assert yaml.safe_load(text) == value
