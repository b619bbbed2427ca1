"""Fixtures for the tests of the supervisor with real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.cluster.node.host import Host


def _runs(python: str, version: str) -> bool:
    """A name on the PATH may be a shim without an interpreter behind it."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def find_python(version: str) -> str:
    """An interpreter of this version from GLM2_TEST_PYTHONS (a path list) or the PATH, or ''."""
    named = [p for p in os.environ.get("GLM2_TEST_PYTHONS", "").split(os.pathsep) if p]
    found = shutil.which(f"python{version}")
    candidates = named + ([found] if found else [])
    return next((python for python in candidates if _runs(python, version)), "")


@pytest.fixture(scope="session", params=["own", "3.7", "3.8", "3.13"])
def any_python(request: pytest.FixtureRequest) -> str:
    """Our own interpreter, and the oldest and newest that hosts may have."""
    if request.param == "own":
        return sys.executable
    python = find_python(request.param)
    if not python:
        pytest.skip(f"no Python {request.param} on the PATH or in GLM2_TEST_PYTHONS")
    return python


@pytest.fixture
def new_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts; after the test nothing of their runs may be left."""
    hosts: List[Host] = []

    def make(python: str = sys.executable, workdir: str = "work", run_id: str = "") -> Host:
        host = Host(python, tmp_path / workdir, run_id or f"run-{uuid.uuid4().hex[:12]}")
        hosts.append(host)
        return host

    yield make
    left = {host.run_id: host.leftovers() for host in hosts}
    for host in hosts:
        if left[host.run_id]:
            host.ask("stop", "--grace", "0")
    assert not any(left.values()), left


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    return new_host()
