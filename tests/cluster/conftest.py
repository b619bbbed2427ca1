"""Fixtures of the tests that use real SSH servers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Iterator

import pytest

from tests.cluster.sshd import SSHD, Loopback


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Callable[..., Loopback]]:
    """``loopback(n)`` starts n sshd servers and gives them as a Loopback; all end with the test.

    ``sshd_config`` adds lines to their configuration.
    """
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with ExitStack() as stack:

        def start(count: int = 1, *, sshd_config: str = "") -> Loopback:
            return stack.enter_context(
                Loopback(tmp_path / "loopback", count, sshd_config=sshd_config)
            )

        yield start
