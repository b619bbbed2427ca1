"""Folders that two launches make at one moment."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest

from orchestrator.node import unpack


def test_a_folder_that_another_makes_meanwhile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = os.path.isdir

    def slow(path: str) -> bool:
        there = looks(path)
        with suppress(FileExistsError):  # the other one, a moment later
            os.mkdir(tmp_path / "runs")
        return there

    monkeypatch.setattr("os.path.isdir", slow)
    nothing = json.dumps({"files": []}).encode() + b"\n"
    assert unpack.receive(BytesIO(nothing), str(tmp_path / "runs")) == {}
    assert (tmp_path / "runs").is_dir()
