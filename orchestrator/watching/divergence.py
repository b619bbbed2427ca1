"""Training that goes wrong though every rank runs: a loss that is no number, a collapsed scale.

Pure. An overflow is normal at the start and now and then: the step is skipped and the loss scale
halved. Its loss may be infinite or NaN and does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from orchestrator.watching.progress import number


@dataclass(frozen=True)
class DivergenceLimits:
    """``nan_steps`` in a row with a loss that is no number, without an overflow; ``overflows`` in
    a row, or half of that with a loss scale of ``least_scale`` or less."""

    nan_steps: int = 3
    overflows: int = 50
    least_scale: float = 1.0


@dataclass(frozen=True)
class Divergence:
    """How many steps in a row of one rank were bad, and the first of them."""

    nan_steps: int = 0
    overflows: int = 0
    first_bad: Optional[int] = None


Verdict = Optional[Tuple[str, Dict[str, Any]]]
"""Rule and evidence, or None."""


def is_good(line: Mapping[str, Any]) -> bool:
    """Whether a step was neither bad nor an overflow: what there was before it counts no more."""
    loss = line.get("loss", 0.0)
    good = math.isfinite(loss) if type(loss) is float else not _is_no_number(loss)
    return good and line.get("overflow") is not True


def observe_loss(
    state: Divergence, line: Mapping[str, Any], limits: DivergenceLimits = DivergenceLimits()
) -> Tuple[Divergence, Verdict]:
    """The state after one more step, and ``loss-nan`` or ``scale-collapse`` when it is too much."""
    if is_good(line):
        return Divergence(), None
    overflow = line.get("overflow") is True
    state = Divergence(
        nan_steps=state.nan_steps if overflow else state.nan_steps + 1,
        overflows=state.overflows + 1 if overflow else 0,
        first_bad=line["step"] if state.first_bad is None else state.first_bad,
    )
    return state, _verdict(state, number(line.get("loss_scale")), limits)


def _verdict(state: Divergence, scale: Optional[float], limits: DivergenceLimits) -> Verdict:
    if state.nan_steps >= limits.nan_steps:
        return "loss-nan", {"first_step": state.first_bad, "steps": state.nan_steps}
    collapsed = scale is not None and scale <= limits.least_scale
    if state.overflows >= limits.overflows or (
        collapsed and state.overflows * 2 >= limits.overflows
    ):
        return "scale-collapse", {
            "first_step": state.first_bad,
            "overflows": state.overflows,
            "loss_scale": scale,
        }
    return None


def _is_no_number(loss: object) -> bool:
    """NaN or infinite, however it was written in JSON, which has no word for it."""
    if isinstance(loss, str):
        return loss.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")
    return loss is None or (isinstance(loss, float) and not math.isfinite(loss))
