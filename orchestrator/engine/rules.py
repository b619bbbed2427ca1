"""The rules of watching that a plan calls for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Dict

from orchestrator.planning.plan import Plan
from orchestrator.watching.hang import HangLimits
from orchestrator.watching.training import TrainingLimits
from orchestrator.watching.watcher import Rules


def rules_of(plan: Plan) -> Rules:
    """The defaults of ``watching``, with what the job says over them."""
    options: Dict[str, Any] = dict(plan.watch)
    known = {field.name for field in fields(HangLimits)}
    hang = HangLimits(**{key: value for key, value in options.items() if key in known})
    rules = Rules(limits=TrainingLimits(hang=hang))
    return replace(
        rules,
        silence_s=options.get("silence_s", rules.silence_s),
        stop_on_hang=options.get("on_hang", "stop") == "stop",
        stop_on_divergence=options.get("on_divergence", "tell") == "stop",
    )
