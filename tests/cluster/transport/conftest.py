"""Transports to test: over SSH to a real sshd, and local."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Callable, Iterator

import pytest

from orchestrator.inventory import Host
from orchestrator.transport.base import Transport
from orchestrator.transport.local import LocalTransport
from orchestrator.transport.pool import connect

Dial = Callable[[Host], Transport]


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    """What is pushed here is undone when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def dial(ending: ExitStack) -> Dial:
    """``connect``, and an end to the connection with the test."""

    def dial(host: Host) -> Transport:
        transport = connect(host)
        ending.callback(transport.close)
        return transport

    return dial


@pytest.fixture(params=["ssh", "local"])
def make_transport(
    request: pytest.FixtureRequest, ending: ExitStack, dial: Dial
) -> Callable[..., Transport]:
    """Makes a transport of either kind; ``python`` is what the host's Python is said to be."""

    def make(python: str = sys.executable) -> Transport:
        if request.param == "ssh":
            host = request.getfixturevalue("loopback")(1).hosts[0]
            return dial(replace(host, python=python))
        transport = LocalTransport("here", python=python)
        ending.callback(transport.close)
        return transport

    return make


@pytest.fixture
def transport(make_transport: Callable[..., Transport]) -> Transport:
    return make_transport()
