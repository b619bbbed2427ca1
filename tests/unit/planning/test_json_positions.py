"""JSON read past its mistakes, each of them placed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.json_positions import (
    MOST_FAULTS,
    Object,
    Scalar,
    plain,
    read_json,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values, st.booleans(), st.sampled_from([None, 1, 4]))
def test_valid_json_has_the_value_that_json_loads_gives(value, ascii_only, indent):
    reading = read_json(json.dumps(value, ensure_ascii=ascii_only, indent=indent))
    assert reading.faults == []
    assert reading.root is not None
    assert plain(reading.root) == value


def strictly(text: str) -> object:
    """json.loads without what it takes beyond JSON: NaN, and repeated keys."""

    def pairs(items):
        if len(dict(items)) < len(items):
            raise ValueError("repeated")
        return dict(items)

    def constant(name):
        raise ValueError(name)

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


@settings(max_examples=400)
@given(st.text("{}[]:,\"ab1.#\n \\'…/*", max_size=60) | st.text())
def test_any_text_is_read_and_faulty_exactly_when_it_is_not_json(text):
    reading = read_json(text)
    valid, value = True, None
    try:
        value = strictly(text)
    except ValueError:
        valid = False
    assert (reading.faults == []) == valid
    if valid:
        assert reading.root is not None
        assert plain(reading.root) == value
    for fault in reading.faults:
        line, column = reading.place(fault.at)
        assert 1 <= line <= text.count("\n") + 1
        assert column >= 1


@pytest.mark.parametrize(
    ("text", "value", "faults"),
    [
        ("", None, [(1, 1, "syntax")]),
        ('{"a": 1} # no', {"a": 1}, [(1, 10, "comment")]),
        ('{"a": // no\n 1}', {"a": 1}, [(1, 7, "comment")]),
        ('{"a": /* no\n */ 1}', {"a": 1}, [(1, 7, "comment")]),
        ('{"a": [1, 2, ...]}', {"a": [1, 2]}, [(1, 14, "ellipsis")]),
        ('{"a": [1, …, 2]}', {"a": [1, 2]}, [(1, 11, "ellipsis")]),
        ('{"a": 1, ...}', {"a": 1}, [(1, 10, "ellipsis")]),
        ('"a": 1}', {"a": 1}, [(1, 1, "bracket")]),
        ('"a": [1], "b": 2\n', {"a": [1], "b": 2}, [(1, 1, "bracket")]),
        ('{"a": [1, 2', {"a": [1, 2]}, [(1, 12, "bracket"), (1, 12, "bracket")]),
        ('{"a": [{"b": 1}, {"c": 2]}', {"a": [{"b": 1}, {"c": 2}]}, [(1, 25, "bracket")]),
        ('{"a": [1}', {"a": [1]}, [(1, 9, "bracket")]),
        ('{"a": [{"b": 1}, "c": 2}]}', {"a": [{"b": 1}, {"c": 2}]}, [(1, 18, "bracket")]),
        ('{"a": 1}}', {"a": 1}, [(1, 9, "bracket")]),
        ('{"a": 1]}', {"a": 1}, [(1, 8, "bracket")]),
        ('{"a": 1,}', {"a": 1}, [(1, 8, "comma")]),
        ('{"a": 1\n "b": 2}', {"a": 1, "b": 2}, [(2, 2, "comma")]),
        ("[1,, 2]", [1, 2], [(1, 4, "comma")]),
        ("{'a': 'b'}", {"a": "b"}, [(1, 2, "quote"), (1, 7, "quote")]),
        ("{“a”: 1}", {"a": 1}, [(1, 2, "quote")]),
        ('{"a": b, c: 1}', {"a": "b", "c": 1}, [(1, 7, "quote"), (1, 10, "quote")]),
        ('{"a": 01}', {"a": "01"}, [(1, 7, "quote")]),
        ('{"a": "x\ty"}', {"a": "x\ty"}, [(1, 7, "quote")]),
        ('{"a": "x,\n"b": 1}', {"a": "x", "b": 1}, [(1, 7, "quote"), (2, 1, "comma")]),
        ('{"a": 1, "a": 2}', {"a": 2}, [(1, 10, "repeated")]),
        ('{"a" 1}', {"a": 1}, [(1, 6, "syntax")]),
        ('{"a": }', {"a": None}, [(1, 7, "syntax")]),
        ("\ufeff{}", {}, [(1, 1, "syntax")]),
        ("{} x", {}, [(1, 4, "syntax")]),
        ('{"a": "\\u12"}', {"a": "\\u12"}, [(1, 7, "syntax")]),
    ],
)
def test_mistakes_are_named_placed_and_read_past(text, value, faults):
    reading = read_json(text)
    assert (None if reading.root is None else plain(reading.root)) == value
    assert [(*reading.place(fault.at), fault.kind) for fault in reading.faults] == faults
    assert all(fault.message and fault.hint for fault in reading.faults)


def test_every_value_has_its_place():
    reading = read_json('{\n  "a": [10,\n    {"b": "c"}]}')
    root = reading.root
    assert isinstance(root, Object)
    ten, inner = root.members["a"].items
    assert isinstance(ten, Scalar)
    assert reading.place(root.keys["a"]) == (2, 3)
    assert reading.place(ten.at) == (2, 9)
    assert reading.place(inner.members["b"].at) == (3, 11)


def test_what_is_no_json_at_all_is_given_up():
    assert len(read_json("x " * 5000).faults) <= MOST_FAULTS
    assert read_json("[" * 5000).faults
    assert read_json('{"a": ' + "9" * 9000 + "}").faults


@pytest.mark.parametrize("text", ['{"a"：1，"b": ［］}', '｛"a":1; "b": []｝'])
def test_the_wide_marks_of_an_input_method_are_read_as_meant(text):
    reading = read_json(text)
    assert reading.root is not None
    assert plain(reading.root) == {"a": 1, "b": []}
    assert all("is not JSON" in fault.message for fault in reading.faults)
    assert [fault.at for fault in reading.faults] == [
        at for at, char in enumerate(text) if char in "：，；;｛｝［］"
    ]
