"""Texts and files of ``--predict_data``."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm2.errors import UsageError
from glm2.prompts import read_prompts


def test_a_backslash_and_n_are_a_line_break() -> None:
    assert read_prompts([r"[Round 1]\n\n问：你好"]) == ["[Round 1]\n\n问：你好"]


def test_a_file_has_one_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("黑色\n\n裙子\\n上衣\n", encoding="utf-8")
    assert read_prompts(["白色", str(file)]) == ["白色", "黑色", "裙子\n上衣"]


@pytest.mark.parametrize("text", ["黑" * 200, "黑" * 5000, "a\0b"])
def test_a_text_that_cannot_be_a_name_is_a_text(text: str) -> None:
    assert read_prompts([text]) == [text]


def test_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="needs --predict_data"):
        read_prompts([])
    with pytest.raises(UsageError, match="holds no text"):
        read_prompts([" "])


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("黑色\n".encode("gbk"))
    with pytest.raises(UsageError, match=r"prompts.txt is no text in UTF-8: .* at byte 0"):
        read_prompts([str(file)])
