"""Fixtures of the worker's tests that need no MindSpore."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm2 import sample
from glm2.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in data set, written once."""
    folder = tmp_path_factory.mktemp("sample")
    sample.write(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(sample_folder: Path) -> Tokenizer:
    return Tokenizer(sample_folder / "tokenizer.model")
