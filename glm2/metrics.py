"""What a rank reports while it works: ``metrics.jsonl`` for programs, lines for people."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Mapping

SCHEMA = 1


class Metrics:
    """Appends to a rank's ``metrics.jsonl``; each line is complete and flushed (contract 1)."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "metrics.jsonl"
        self._clock = clock

    def step(self, **values: Any) -> None:
        """One training step: step, steps, epoch, loss, lr, tokens_per_s_per_p, step_time_s …"""
        self._write(values)

    def phase(self, name: str) -> None:
        """A phase begins: startup, compile, train, checkpoint, eval or done."""
        self._write({"phase": name})

    def result(self, values: Mapping[str, Any]) -> None:
        """What an evaluation or a prediction found."""
        self._write({"result": dict(values)})

    def _write(self, values: Mapping[str, Any]) -> None:
        line = {"schema": SCHEMA, **values, "wall": round(self._clock(), 3)}
        # NaN and infinity are no JSON: a diverged loss is written as null.
        text = json.dumps(_finite(line), ensure_ascii=False, allow_nan=False)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(text + "\n")


def say(text: str) -> None:
    """A line for people, with the time, on standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def warn(text: str) -> None:
    """A warning for people, on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
