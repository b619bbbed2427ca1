"""Device lists and what a 910 server allows."""

from __future__ import annotations

from typing import Tuple

import pytest

from orchestrator.inventory import DevicesError, parse_devices
from orchestrator.inventory.devices import FOURS_OF_910, unfit_for_910


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("[0,8)", tuple(range(8))),
        ("[0,8]", tuple(range(8))),  # the guide: "不包含8本身"
        ("[ 0 , 8 )", tuple(range(8))),
        ("[8,16)", tuple(range(8, 16))),
        ("[10,12]", (10, 11)),
        ("0,1,4,5", (0, 1, 4, 5)),
        ("3", (3,)),
    ],
)
def test_ranges_are_half_open_and_lists_are_lists(text: str, devices: Tuple[int, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[8,8)", "empty"),
        ("[8,0)", "empty"),
        ("(0,8)", "not a device range"),
        ("0-7", "not a device range"),
        ("[0,8", "not a device range"),
        ("", "not a device range"),
        ("[0,8)\n", None),
        ("1,0", "ascending"),
        ("0,0", "ascending"),
        ("[0,99999)", "devices"),
    ],
)
def test_says_what_cannot_be_read(text: str, message: str | None) -> None:
    if message is None:
        assert parse_devices(text) == tuple(range(8))
        return
    with pytest.raises(DevicesError, match=message) as caught:
        parse_devices(text)
    assert caught.value.hint


def test_910_has_eight_devices() -> None:
    unfit = unfit_for_910(tuple(range(8, 16)))
    assert unfit is not None
    assert "does not exist" in unfit[0]
    assert unfit_for_910(tuple(range(8))) is None


def test_910_accepts_eight_sets_of_four() -> None:
    assert all(unfit_for_910(four) is None for four in FOURS_OF_910)
    assert unfit_for_910((0, 1, 2, 4)) is not None
