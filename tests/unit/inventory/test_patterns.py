"""Host patterns: what they stand for, and what is said about those that stand for nothing."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.inventory import PatternError, expand


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("localhost", ["localhost"]),
        ("192.168.0.[0-2]", ["192.168.0.0", "192.168.0.1", "192.168.0.2"]),
        ("node[08-11]", ["node08", "node09", "node10", "node11"]),
        ("node[099-101]", ["node099", "node100", "node101"]),
        ("node[98-101]", ["node98", "node99", "node100", "node101"]),
        ("n[0-1,7]", ["n0", "n1", "n7"]),
        ("n[0]", ["n0"]),
        ("n[00-02]", ["n00", "n01", "n02"]),
        ("r[1,3]n[1-2]", ["r1n1", "r1n2", "r3n1", "r3n2"]),
        ("a[1-2]x, b ,c[3]", ["a1x", "a2x", "b", "c3"]),
    ],
)
def test_expands(pattern: str, names: List[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "part", "message"),
    [
        ("node[1-", "[1-", "not closed"),
        ("node1]", "]", "without"),
        ("node[3-1]", "3-1", "backwards"),
        ("node[1-3,x]", "x]", "neither a number nor a range"),
        ("node[]", "]", "neither a number nor a range"),
        ("node[1-3/2]", "1-3/2", "neither a number nor a range"),
        ("node[[1-3]]", "[1-3", "neither a number nor a range"),
        ("node[1-003]", "1-003", "zero padding"),
        ("a,,b", ",b", "missing"),
        ("", "", "missing"),
        ("node[0-99999999]", "0-99999999", "more than"),
        ("n[1-300][1-300]", "[1-300]", "more than"),
    ],
)
def test_points_at_the_faulty_part(pattern: str, part: str, message: str) -> None:
    with pytest.raises(PatternError, match=message) as caught:
        expand(pattern)
    assert pattern[caught.value.offset :].startswith(part)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, List[str]]:
    """A bracket item and the numbers that it stands for."""
    low = draw(st.integers(0, 300))
    high = draw(st.integers(low, low + 40))
    width = draw(st.integers(len(str(low)), 5))
    numbers = [str(n).zfill(width) for n in range(low, high + 1)]
    if len({len(number) for number in numbers}) > 1 and not numbers[0].startswith("0"):
        numbers = [str(n) for n in range(low, high + 1)]
    item = numbers[0] if low == high and draw(st.booleans()) else f"{numbers[0]}-{numbers[-1]}"
    return item, numbers


@given(
    prefix=st.from_regex(r"[a-z.]{0,5}", fullmatch=True),
    items=st.lists(ranges(), min_size=1, max_size=3),
)
def test_a_bracket_stands_for_the_numbers_of_its_items_in_order(
    prefix: str, items: List[tuple[str, List[str]]]
) -> None:
    pattern = f"{prefix}[{','.join(item for item, _ in items)}]"
    assert expand(pattern) == [prefix + number for _, numbers in items for number in numbers]


@given(st.text(alphabet="ab01-9[],. \n", max_size=20))
def test_any_text_is_expanded_or_refused(pattern: str) -> None:
    names, offset = ["x"], 0
    try:
        names = expand(pattern)
    except PatternError as error:
        offset = error.offset
    assert 0 <= offset <= len(pattern)
    assert names
    assert all("[" not in name and "," not in name for name in names)


@given(st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1))
def test_plain_names_stand_for_themselves(names: List[str]) -> None:
    assert expand(",".join(names)) == names
