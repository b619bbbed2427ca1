"""``python -m glm2``: exit statuses and messages, where MindSpore cannot be imported.

Whatever can be wrong with a command is said before MindSpore is imported, which takes seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from glm2.__main__ import main

REPOSITORY = Path(__file__).parents[3]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def glm2(tmp_path: Path, sample_folder: Path) -> Command:
    """Runs the command in a process where importing MindSpore fails."""
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir()
    (forbidden / "mindspore.py").write_text("raise ImportError('MindSpore was imported')\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MS_")}
    environ |= {
        "PYTHONPATH": f"{forbidden}{os.pathsep}{REPOSITORY}",
        "GLM2_CACHE": str(tmp_path / "cache"),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "glm2", *words],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_help_needs_no_mindspore(glm2: Command) -> None:
    done = glm2("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("--config", "--run_mode", "{train,finetune,eval,predict}", "sample-data", "check"):
        assert word in done.stdout


def test_a_good_configuration_is_checked_without_mindspore(glm2: Command) -> None:
    done = glm2("check", "--config", "tiny_cpu", "--run_mode", "finetune")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bad_configuration_exits_3_and_says_where_and_what_next(glm2: Command) -> None:
    done = glm2("check", "--config", "tiny_cpu", "--set", "runner_config.epoch=1")
    assert done.returncode == 3
    assert done.stderr == (
        "error: --set: unknown key runner_config.epoch\n  → did you mean epochs?\n"
    )


def test_wrong_data_is_said_before_mindspore_is_imported(glm2: Command) -> None:
    done = glm2("--config", "tiny_cpu", "--run_mode", "finetune", "--train_dataset_dir", "absent")
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot read the dataset absent: ")


def test_lines_that_are_no_rows_are_counted_and_named(glm2: Command, tmp_path: Path) -> None:
    good = '{"content": "类型#裙", "summary": "裙子"}\n'
    (tmp_path / "train.json").write_text(f"{good}[]\n{good}oops\n", encoding="utf-8")
    done = glm2("--config", "tiny_cpu", "--train_dataset_dir", ".")
    assert "warning: train.json: 2 lines are no rows and left out: line 2: not a JSON object" in (
        done.stderr
    )
    assert "line 4: " in done.stderr


class TestInProcess:
    """Errors that end before anything is started."""

    def said(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple:
        return main(words), capsys.readouterr().err

    def test_keys_without_effect_are_warned_of(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, said = self.said(
            capsys, "check", "--config", "tiny_cpu", "--set", "layer_decay=0.65"
        )
        assert (status, said) == (0, "warning: layer_decay has no effect\n")

    def test_a_row_of_another_length_exits_3_when_training_is_asked_for(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check = ["check", "--config", "tiny_cpu", "--set", "model.model_config.seq_length=96"]
        status, said = self.said(capsys, *check, "--run_mode", "train")
        assert status == 3
        assert "seq_length is 96" in said
        assert "→ set model.model_config.seq_length to 97" in said
        assert self.said(capsys, *check, "--run_mode", "predict") == (0, "")

    @pytest.mark.parametrize(
        ("words", "status", "named"),
        [
            (["--config", "absent"], 3, "there is no configuration absent"),
            (["--config", "tiny_cpu", "--set", "seed"], 2, "expected KEY=VALUE"),
            (["--config", "tiny_cpu", "--run_mode", "predict"], 2, "predict needs --predict_data"),
            (["check", "--config", "absent"], 3, "there is no configuration absent"),
            (["sample-data", "--out", "{file}/x"], 2, "cannot write to"),
            (["discribe"], 2, "there is no command discribe\n  → did you mean describe?"),
            (["predict"], 2, "there is no command predict\n  → a mode is an option: --run_mode"),
            (["scheduler"], 2, "the scheduler needs MS_WORKER_NUM, MS_SCHED_HOST, MS_SCHED_PORT"),
        ],
    )
    def test_what_glm2_refuses(
        self,
        words: list,
        status: int,
        named: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT"):
            monkeypatch.delenv(name, raising=False)
        file = tmp_path / "file"
        file.write_text("")
        found, said = self.said(capsys, *(word.format(file=file) for word in words))
        assert found == status
        assert said.startswith("error: ")
        assert named in said

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            ([], "--config"),
            (["--config", "tiny_cpu", "--run_mode", "fly"], "--run_mode"),
            (["--config", "tiny_cpu", "--use_parallel", "maybe"], "'maybe' is neither True nor"),
            (["--config", "tiny_cpu", "--run", "train"], "--run"),
            (["check"], "--config"),
        ],
    )
    def test_what_the_parser_refuses(
        self, words: list, named: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert named in capsys.readouterr().err


def test_a_reader_that_has_enough():
    """``describe | true`` ends as a shell shows SIGPIPE, without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "glm2", "describe", "--config", "tiny_cpu"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_said_without_a_traceback():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "glm2", "describe", "--config", "tiny_cpu"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device\n  → ")
    assert "Traceback" not in done.stderr
