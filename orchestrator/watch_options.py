"""What a job says about being watched: ``watch:`` of the job section, ``--watch KEY=VALUE``."""

from __future__ import annotations

import math
from typing import Mapping, Optional, Tuple, Union

from orchestrator.problems import nearest, shown

Value = Union[float, str]

CHOICES = ("stop", "tell")
DECISIONS: Mapping[str, str] = {
    "on_hang": "what to do when no rank gets on: stop (the default) or tell",
    "on_divergence": "what to do when the loss is no number or its scale collapses: tell or stop",
}
SECONDS: Mapping[str, str] = {
    "silence_s": "how long a host may be silent before it is given up (60)",
    "startup_s": "how long ranks may stand still before they compile (3600)",
    "compile_s": "while they compile (7200)",
    "first_step_s": "in their first step (1800)",
    "step_s": "in a step, where their own pace does not allow longer (600)",
    "checkpoint_s": "while they write a checkpoint (1800)",
    "eval_s": "in an evaluation, after the first (3600)",
}
KEYS: Tuple[str, ...] = (*DECISIONS, *SECONDS)


class WatchOptionError(ValueError):
    """A key or value that is not one. ``hint``: the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check(key: str, value: object) -> Value:
    """The value of ``key``, checked. Raises WatchOptionError."""
    if key in DECISIONS:
        if value not in CHOICES:
            raise WatchOptionError(
                f"`{key}` is {shown(str(value))}, and must be stop or tell", DECISIONS[key]
            )
        return str(value)
    if key not in SECONDS:
        hint = nearest(key, KEYS) or f"known are {', '.join(KEYS)}"
        raise WatchOptionError(f"unknown key {shown(key)} in `watch`", hint)
    number = _number(value)
    if number is None or number < 1.0:
        raise WatchOptionError(
            f"`{key}` is {shown(str(value))}, and must be a time of 1 second or more", SECONDS[key]
        )
    return number


def _number(value: object) -> Optional[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
