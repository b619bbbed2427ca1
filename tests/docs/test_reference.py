"""The pages of docs/reference are those of the code."""

from __future__ import annotations

import pytest

from docs.generate import FOLDER, pages


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_page_is_that_of_the_code(name: str) -> None:
    committed = (FOLDER / name).read_text("utf-8")
    assert committed == pages()[name], "run `make docs`"


def test_no_other_page_is_there() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(pages())
