"""A rank tells where it stands when it is asked by a signal, and goes on."""

from __future__ import annotations

import subprocess
import sys

WORKER = """
import os, signal, sys
from pathlib import Path
from glm2 import stacks
def wait_for_the_others():
    os.kill(os.getpid(), signal.SIGUSR1)
for _ in range(2):
    stacks.offer(Path(sys.argv[1]))
wait_for_the_others()
"""


def test_the_stacks_of_a_rank(tmp_path):
    folder = tmp_path / "ranks" / "rank_0"
    subprocess.run([sys.executable, "-c", WORKER, str(folder)], check=True, timeout=60)
    text = (folder / "stacks.log").read_text()
    assert text.count("in wait_for_the_others") == 1
    assert "Current thread" in text
