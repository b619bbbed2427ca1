"""What must hold between the keys of a configuration: every fault, with its line.

Single keys are judged where they are read (``glm2.settings``), and the first fault ends that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional

from glm2.settings import Settings
from glm2.yaml_source import Source

TRAINING = ("train", "finetune")


@dataclass(frozen=True)
class Fault:
    """One sentence that begins with file and line, and the next step."""

    message: str
    hint: str = ""


@dataclass
class Verdict:
    """What ``check`` found: faults end a run, warnings do not."""

    faults: List[Fault] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)


def judge(
    settings: Settings,
    source: Source,
    mode: str,
    *,
    ranks: Optional[int] = None,
    host_ranks: Optional[int] = None,
) -> Verdict:
    """Judge ``settings`` of the file ``source`` for ``mode``.

    ``ranks`` is the number of processes there will be and ``host_ranks`` how many of them share a
    host; what depends on one that is None is not judged.
    """
    verdict = Verdict()
    if ranks != 1:
        _judge_layout(settings, source, ranks, host_ranks, verdict)
    if mode in TRAINING:
        _judge_lengths(settings, source, verdict)
        if settings.do_eval:
            _judge_eval(settings, source, verdict)
    return verdict


def _judge_layout(
    settings: Settings,
    source: Source,
    ranks: Optional[int],
    host_ranks: Optional[int],
    verdict: Verdict,
) -> None:
    data, model = settings.parallel.data_parallel, settings.parallel.model_parallel
    key = "parallel_config.model_parallel"
    if ranks is not None and data and data * model != ranks:
        at = "parallel_config.data_parallel"
        verdict.faults.append(
            Fault(
                f"{source.where(at)}{at} {data} · model_parallel {model} = {data * model}, but "
                f"there are {ranks} ranks",
                f"set {at} to {ranks // model}" if ranks % model == 0 else "change the layout",
            )
        )
    elif ranks is not None and not data and ranks % model:
        message = f"{source.where(key)}{key} {model} does not divide {ranks} ranks"
        verdict.faults.append(Fault(message, "change the layout, or the number of ranks"))
    heads = settings.model.num_attention_heads
    if heads % model:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        message = f"{source.where(key)}{key} {model} does not divide the {heads} attention heads"
        verdict.faults.append(Fault(message, f"use one of {divisors}"))
    if host_ranks is not None and host_ranks % model:
        verdict.warnings.append(
            f"{source.where(key)}{key} {model} does not fit inside a host with {host_ranks} ranks"
        )


def _judge_lengths(settings: Settings, source: Source, verdict: Verdict) -> None:
    train = settings.train
    if train is None:
        message = f"{source.name}: the configuration has no train_dataset"
        verdict.faults.append(Fault(message, "add the section train_dataset"))
        return
    key = "model.model_config.seq_length"
    row, length = train.width, settings.model.seq_length
    if row != length:
        verdict.faults.append(
            Fault(
                f"{source.where(key)}{key} is {length}, but max_source_length "
                f"{train.max_source_length} + max_target_length {train.max_target_length} + 1 of "
                f"train_dataset is {row}",
                f"set {key} to {row}",
            )
        )


def _judge_eval(settings: Settings, source: Source, verdict: Verdict) -> None:
    """The guide has both datasets equal, because its graph of training evaluates too; glm2 has a
    graph of its own and only needs the dataset."""
    train, evaluation = settings.train, settings.eval
    if evaluation is None:
        message = f"{source.where('do_eval')}do_eval is True, but there is no eval_dataset"
        verdict.faults.append(Fault(message, "add the section, or set do_eval to False"))
        return
    for name in ("max_source_length", "max_target_length", "batch_size"):
        ours, theirs = getattr(evaluation, name), getattr(train, name, None)
        if theirs is not None and ours != theirs:
            key = f"eval_dataset.{name}"
            verdict.warnings.append(
                f"{source.where(key)}{key} is {ours}, but {theirs} for training; the guide has "
                "them equal with do_eval"
            )
