"""The built-in data set: the same bytes for everyone, whoever makes it first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glm2 import sample
from glm2.data import encode_prompt, read_rows
from glm2.errors import ConfigError
from glm2.settings import find_config, load_settings, needed
from glm2.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[3]
ROW = re.compile(r"类型#\w+(\*\w+#\w+){2,4}")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_another_process_writes_the_same_bytes(sample_folder: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "glm2", "sample-data", "--out", str(tmp_path / "out")],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "out" / name) for name in sample.FILES]
    assert contents(tmp_path / "out") == contents(sample_folder)


def test_rows_have_the_form_of_advertisegen(sample_folder: Path) -> None:
    for name, count in (("train.json", sample.TRAIN_ROWS), ("dev.json", sample.DEV_ROWS)):
        lines = (sample_folder / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        for line in lines:
            row = json.loads(line)
            assert list(row) == ["content", "summary"]
            assert ROW.fullmatch(row["content"])
            # One clause for each attribute beside the type, behind the opening one.
            assert row["summary"].count("，") == row["content"].count("*")
            assert row["summary"].endswith("。")
        assert not read_rows(sample_folder / name).bad


def test_no_question_of_the_evaluation_was_trained() -> None:
    train, dev = sample.rows(sample.SEED)
    asked = [row["content"] for row in train + dev]
    assert len(set(asked)) == len(asked)


def test_no_row_is_cut_by_the_configuration_that_uses_it(
    sample_folder: Path, tokenizer: Tokenizer
) -> None:
    dataset = needed(load_settings(find_config("tiny_cpu")).train, "train_dataset")
    for row in read_rows(sample_folder / "train.json").rows:
        assert len(encode_prompt(row.content, tokenizer, 1000)) <= dataset.max_source_length
        assert len(tokenizer.encode(row.summary, special=False)) <= dataset.max_target_length


class TestCache:
    def test_processes_that_race_get_the_same_complete_files(
        self, sample_folder: Path, tmp_path: Path
    ) -> None:
        code = "from glm2 import sample; print(sample.resolve('sample:tokenizer.model'))"
        environ = {**os.environ, "GLM2_CACHE": str(tmp_path)}
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=environ,
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        found = {racer.communicate(timeout=60)[0].strip() for racer in racers}
        assert [racer.returncode for racer in racers] == [0, 0, 0]
        assert len(found) == 1
        folder = Path(found.pop()).parent
        assert contents(folder) == contents(sample_folder)
        assert list(tmp_path.iterdir()) == [folder], "nothing half made is left"

    def test_the_one_that_comes_second_takes_what_the_first_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environ = {"GLM2_CACHE": str(tmp_path)}
        first: list[Path] = []

        def overtaken(folder: Path) -> None:
            monkeypatch.undo()
            first.append(sample.cached(environ))
            (folder / "mine").write_text("")

        monkeypatch.setattr(sample, "write", overtaken)
        assert sample.cached(environ) == first[0]
        assert sorted(contents(first[0])) == sorted(sample.FILES)
        assert list(tmp_path.iterdir()) == first

    def test_what_is_there_is_used_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environ = {"GLM2_CACHE": str(tmp_path)}
        folder = sample.cached(environ)
        monkeypatch.delattr(sample, "write")
        assert sample.resolve("sample:dev.json", environ) == folder / "dev.json"

    def test_the_place_is_the_users_cache_unless_it_is_named(self) -> None:
        assert sample.cache_root({"GLM2_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
        assert sample.cache_root({"XDG_CACHE_HOME": "/b"}) == Path("/b/glm2")
        assert sample.cache_root({}) == Path.home() / ".cache" / "glm2"

    def test_a_place_that_cannot_be_made_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="cannot make the sample data") as caught:
            sample.resolve("sample:dev.json", {"GLM2_CACHE": str(tmp_path / "file" / "x")})
        assert "GLM2_CACHE" in caught.value.hint


def test_a_plain_path_is_itself() -> None:
    assert sample.resolve("data/train.json", {}) == Path("data/train.json")


def test_a_file_that_the_sample_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        sample.resolve("sample:test.json", {})
    assert "dev.json" in caught.value.hint
