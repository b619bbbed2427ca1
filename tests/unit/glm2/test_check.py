"""``python -m glm2 check``: what must hold between keys, every fault with its line."""

from __future__ import annotations

from pathlib import Path
from typing import List, Tuple

import pytest

from glm2.__main__ import main
from glm2.settings import find_config

DO_EVAL = ("--set", "do_eval=True")


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Judges the shipped tiny configuration with some of its text replaced."""

    def check(changes: List[Tuple[str, str]], *words: str) -> Tuple[int, List[str]]:
        text = find_config("tiny_cpu").read_text("utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
        status = main(["check", "--config", str(tmp_path / "my.yaml"), *words])
        return status, capsys.readouterr().err.splitlines()

    return check


def line(text: str) -> int:
    lines = find_config("tiny_cpu").read_text("utf-8").splitlines()
    return next(i for i, found in enumerate(lines, 1) if text in found)


def test_every_fault_at_once_each_with_its_line(check) -> None:
    changes = [
        ("max_target_length: 48", "max_target_length: 47"),
        ("model_parallel: 1", "data_parallel: 3"),
    ]
    status, said = check(changes, "--ranks", "8")
    assert status == 3
    assert said == [
        f"error: my.yaml:{line('model_parallel: 1')}: parallel_config.data_parallel 3 · "
        "model_parallel 1 = 3, but there are 8 ranks",
        "  → set parallel_config.data_parallel to 8",
        f"error: my.yaml:{line('    seq_length: 97')}: model.model_config.seq_length is 97, but "
        "max_source_length 48 + max_target_length 47 + 1 of train_dataset is 96",
        "  → set model.model_config.seq_length to 96",
    ]


@pytest.mark.parametrize(
    "words", [(), ("--ranks", "1"), ("--ranks", "4", "--host_ranks", "4"), ("--run_mode", "eval")]
)
def test_a_good_configuration_is_silent(check, words: Tuple[str, ...]) -> None:
    assert check([], *words) == (0, [])


def test_do_eval_wants_equal_datasets_and_needs_one(check) -> None:
    status, said = check([("batch_size: 20", "batch_size: 4")], *DO_EVAL)
    assert status == 0
    assert said == [
        f"warning: my.yaml:{line('batch_size: 20')}: eval_dataset.batch_size is 4, but 8 for "
        "training; the guide has them equal with do_eval"
    ]
    status, said = check([], *DO_EVAL, "--set", "eval_dataset=null", "--set",
                         "eval_dataset_task=null")  # fmt: skip
    assert status == 3
    assert said[0] == "error: --set: do_eval is True, but there is no eval_dataset"
    assert check([], *DO_EVAL, "--run_mode", "eval") == (0, [])


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_what_is_no_number_of_ranks(check, number: str) -> None:
    with pytest.raises(SystemExit):
        check([], "--ranks", number)
