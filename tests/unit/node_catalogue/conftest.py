"""Which Pythons the programs for hosts are tried with."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


@pytest.fixture(params=["python3.7", "this Python"])
def python(request: pytest.FixtureRequest) -> str:
    if request.param == "this Python":
        return sys.executable
    old = shutil.which("python3.7")
    if old is None or subprocess.run([old, "-c", ""]).returncode != 0:
        pytest.skip("no python3.7 on the PATH")
    return old
