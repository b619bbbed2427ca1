"""Where a rank stands, for when nobody gets on: Python stacks on a signal (contract 1)."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

FILE = "stacks.log"


def offer(folder: Path) -> None:
    """On SIGUSR1 append the stacks of all threads to ``stacks.log`` in the rank's ``folder``.

    It works within a call that never returns, such as a collective whose peer is gone. That the
    file is open tells the supervisor that the signal may be sent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Kept open for the life of the process: faulthandler only has its descriptor.
    file = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
