"""The answers that a killed evaluation leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm2.answers import AnswerFile

ASKED = {"weights": ["w.ckpt", 5, 1], "rows": [["黑色", "裙"]]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "eval" / "answers_rank_0.jsonl"
    first = AnswerFile(file, ASKED)
    assert first.open() == {}
    first.add({0: "大气", 3: "一行\n又一行"})
    first.add({1: ""})
    return file


def test_answers_come_back(file: Path) -> None:
    assert AnswerFile(file, ASKED).open() == {0: "大气", 3: "一行\n又一行", 1: ""}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_by_a_kill_is_asked_again(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:-cut])
    again = AnswerFile(file, ASKED)
    kept = again.open()
    assert kept in (
        {0: "大气", 3: "一行\n又一行"},
        {0: "大气"},
        {0: "大气", 3: "一行\n又一行", 1: ""},
    )
    again.add({7: "新"})
    assert AnswerFile(file, ASKED).open() == {**kept, 7: "新"}


def test_answers_to_other_questions_are_dropped(file: Path) -> None:
    other = {**ASKED, "weights": ["w.ckpt", 5, 2]}
    assert AnswerFile(file, other).open() == {}
    assert AnswerFile(file, ASKED).open() == {}


def test_a_file_of_another_kind_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\xff\xfe nothing")
    assert AnswerFile(file, ASKED).open() == {}


def test_the_file_goes_with_the_report(file: Path) -> None:
    kept = AnswerFile(file, ASKED)
    kept.remove()
    assert not file.exists()
