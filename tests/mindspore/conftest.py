"""Tests that run real MindSpore, in this process and in others."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.mindspore)


@pytest.fixture(scope="session", autouse=True)
def one_device() -> None:
    """Chosen before any test of this folder runs MindSpore: afterwards it cannot be any more."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture(autouse=True)
def interrupts_are_pythons() -> Iterator[None]:
    """MindSpore's compiler puts a C handler of SIGINT in place that ends the process by SIGTERM:
    later tests, and Ctrl-C, would end all of pytest."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
