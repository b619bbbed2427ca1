"""Runs a script of MindFormers, and makes metrics of what it logs.

    python3 mindformers.py SCRIPT [ARGUMENT…]

The script runs in this process as if it had been started by itself. What MFLossMonitor logs, as
``{ Epoch:[  1/  2], step:[    3/ 1562], loss: 4.321, per_step_time: 412ms, lr: 1e-05, overflow
cond: False, loss_scale: 4096.0`` (without data sinking ``loss:[4.321/4.400]``), becomes lines of
``metrics.jsonl`` in the rank's folder (docs/contracts.md, contract 1), and its stacks can be asked
for. Standard library, Python 3.7 and newer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import re
import runpy
import signal
import sys
import time
from typing import Any, Dict, Optional, TextIO

_STEP = re.compile(
    r"Epoch:\[\s*(?P<epoch>\d+)/\s*(?P<epochs>\d+)\],\s*"
    r"step:\[\s*(?P<step>\d+)/\s*(?P<per_epoch>\d+)\],\s*"
    r"loss:\s*\[?\s*(?P<loss>[-+.\w]+)"
)
_NUMBERS = {
    "lr": re.compile(r"\blr:\s*\[?\s*([-+.\w]+)"),
    "loss_scale": re.compile(r"\bloss_scale:\s*\[?\s*([-+.\w]+)"),
}
_TIME = re.compile(r"(?:per_step_time|time):\s*([\d.]+)\s*ms")
_OVERFLOW = re.compile(r"overflow cond:\s*\[?\s*(True|False)")


def metrics(message: str) -> Optional[Dict[str, Any]]:
    """The line of metrics in a message of the log; None for any other message.

    Steps are counted through all epochs. What the message does not say is left out.
    """
    found = _STEP.search(message)
    if found is None:
        return None
    epoch, epochs, step, per_epoch = (
        int(found.group(name)) for name in ("epoch", "epochs", "step", "per_epoch")
    )
    try:
        loss = float(found.group("loss"))
    except ValueError:
        return None
    line = {
        "schema": 1,
        "step": (epoch - 1) * per_epoch + step,
        "steps": epochs * per_epoch,
        "epoch": epoch,
        "loss": loss if math.isfinite(loss) else None,  # as glm2 writes it: JSON has no word
    }  # type: Dict[str, Any]
    for key, pattern in _NUMBERS.items():
        said = pattern.search(message)
        value = _number(said.group(1)) if said else None
        if value is not None:
            line[key] = value
    took = _TIME.search(message)
    if took:
        line["step_time_s"] = float(took.group(1)) / 1000
    overflow = _OVERFLOW.search(message)
    if overflow:
        line["overflow"] = overflow.group(1) == "True"
    return line


def main() -> None:
    """Run the script named on the command line."""
    folder = os.environ["GLM2_RANK_DIR"]
    stacks = open(os.path.join(folder, "stacks.log"), "a")  # noqa: SIM115 (for the signal)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    out = open(os.path.join(folder, "metrics.jsonl"), "a", buffering=1)  # noqa: SIM115
    _write(out, {"schema": 1, "phase": "startup"})
    _listen(out)
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    _write(out, {"schema": 1, "phase": "done"})


def _listen(out: TextIO) -> None:
    """Look at every record that any logger makes, whatever handlers it has."""
    make = logging.getLogRecordFactory()

    def look(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if "step:[" in str(record.msg):
            try:
                line = metrics(record.getMessage())
            except (TypeError, ValueError):  # its arguments do not fit: the logger will say so
                line = None
            if line is not None:
                _write(out, line)
        return record

    logging.setLogRecordFactory(look)


def _write(out: TextIO, line: Dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end the training
        out.write(json.dumps(dict(line, wall=time.time())) + "\n")


def _number(text: str) -> Optional[float]:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    main()
