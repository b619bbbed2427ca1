"""What must hold between the worker's YAML and the ranks there are: known before any SSH.

The keys are those of MindFormers' and glm2's YAML files. A key that is absent is left to the
worker's own default and not judged here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Sequence, Tuple

from orchestrator.errors import PlanError
from orchestrator.job import Job
from orchestrator.problems import Problems, shown
from orchestrator.worker_config import WorkerConfig

LAYOUT = "parallel_config"
MODEL = ("model", "model_config")
TRAINING = ("train", "finetune")
_HEADS = ("num_attention_heads", "num_heads")
_SHARED = ("max_source_length", "max_target_length", "batch_size")


@dataclass
class Strategy:
    """What a job's YAML says about its ranks and data: all that is wrong, all that is odd."""

    problems: Problems = field(default_factory=Problems)
    warnings: List[str] = field(default_factory=list)
    """Sentences with their places."""


def check_strategy(job: Job, devices: Sequence[int]) -> Tuple[str, ...]:
    """Warnings about ``job`` on hosts with so many ``devices`` each; raises PlanError with every
    problem (see ``review_strategy``)."""
    review = review_strategy(job, devices)
    problems, name = review.problems, job.config.name if job.config else ""
    problems.raise_any(PlanError, f"the configuration {name}")
    return tuple(review.warnings)


def review_strategy(job: Job, devices: Sequence[int]) -> Strategy:
    """Hold the YAML of ``job`` against hosts with so many ``devices`` each, in their order.

    With more than one rank: data_parallel · model_parallel · pipeline_stage is their number,
    model_parallel divides the attention heads and fits inside a host, pipeline_stage divides the
    layers. For training: seq_length = max_source_length + max_target_length + 1; with do_eval
    both datasets agree on these and on batch_size, which glm2 itself does not need.
    Source: the ChatGLM2 guide of MindFormers.
    """
    review = Strategy()
    if job.config is None:
        return review
    values = _Values(job.config, review)
    if sum(devices) > 1:
        _check_layout(values, devices)
    if job.mode in TRAINING:
        _check_lengths(values)
        if values.at("do_eval") is True:
            _check_eval(values, needed=not job.runs_glm2)
    return review


def _check_layout(values: _Values, devices: Sequence[int]) -> None:
    ranks = sum(devices)
    data = values.number(LAYOUT, "data_parallel", least=0)  # 0: all ranks that are left
    model = values.number(LAYOUT, "model_parallel")
    stages = values.number(LAYOUT, "pipeline_stage")
    if values.review.problems.found:
        return
    if data:
        _check_product(values, data, model or 1, stages or 1, ranks)
    elif ranks % ((model or 1) * (stages or 1)):
        values.wrong(
            f"model_parallel {model or 1} · pipeline_stage {stages or 1} does not divide "
            f"{ranks} ranks",
            (LAYOUT, "model_parallel") if model else (LAYOUT,),
            "change the layout, or the hosts and devices",
        )
    if model is not None and model > 1:
        _check_heads(values, model)
        _check_inside_host(values, model, devices)
    if stages is not None and stages > 1:
        _check_stages(values, stages)


def _check_product(values: _Values, data: int, model: int, stages: int, ranks: int) -> None:
    if data * model * stages == ranks:
        return
    mend = "change the layout, or the hosts and devices"
    if ranks % (model * stages) == 0:
        fitting = ranks // (model * stages)
        mend = f"add --set {LAYOUT}.data_parallel={fitting}, or change the hosts and devices"
    values.wrong(
        f"data_parallel {data} · model_parallel {model} · pipeline_stage {stages} = "
        f"{data * model * stages}, but there are {ranks} ranks",
        (LAYOUT, "data_parallel"),
        mend,
    )


def _check_heads(values: _Values, model: int) -> None:
    for key in _HEADS:
        heads = values.number(*MODEL, key)
        if heads is not None and heads % model:
            values.wrong(
                f"model_parallel {model} does not divide the {heads} attention heads "
                f"({'.'.join(MODEL)}.{key})",
                (LAYOUT, "model_parallel"),
                f"use {_divisors(heads)}",
            )


def _check_inside_host(values: _Values, model: int, devices: Sequence[int]) -> None:
    """Ranks of a model-parallel group follow one another, and so do those of a host."""
    odd = next((count for count in devices if count % model), None)
    if odd is not None:
        values.odd(
            f"model_parallel {model} does not fit inside a host with {odd} "
            f"device{'' if odd == 1 else 's'}: its sums in every layer go over the network "
            "between hosts",
            (LAYOUT, "model_parallel"),
        )


def _check_stages(values: _Values, stages: int) -> None:
    layers = values.number(*MODEL, "num_layers")
    if layers is not None and layers % stages:
        values.wrong(
            f"pipeline_stage {stages} does not divide the {layers} layers "
            f"({'.'.join(MODEL)}.num_layers)",
            (LAYOUT, "pipeline_stage"),
            f"use {_divisors(layers)}",
        )
    micro = values.number(LAYOUT, "micro_batch_num")
    if micro is not None and micro < stages:
        values.wrong(
            f"micro_batch_num {micro} is less than pipeline_stage {stages}",
            (LAYOUT, "micro_batch_num"),
            f"use at least {stages}: a stage without a micro batch has nothing to do",
        )


def _check_lengths(values: _Values) -> None:
    source = values.number("train_dataset", "max_source_length")
    target = values.number("train_dataset", "max_target_length")
    length = values.number(*MODEL, "seq_length")
    if source is None or target is None or length is None or length == source + target + 1:
        return
    values.wrong(
        f"{'.'.join(MODEL)}.seq_length is {length}, but max_source_length {source} + "
        f"max_target_length {target} + 1 of train_dataset is {source + target + 1}",
        (*MODEL, "seq_length"),
        f"add --set {'.'.join(MODEL)}.seq_length={source + target + 1}, or change the dataset",
    )


def _check_eval(values: _Values, *, needed: bool) -> None:
    """With ``do_eval`` the graph of training evaluates too: ``needed`` is False for glm2, which
    has one of its own."""
    if not isinstance(values.at("eval_dataset"), dict):
        hint = "add the section, or set do_eval to False"
        values.wrong("do_eval is True, but there is no eval_dataset", ("do_eval",), hint)
        return
    for key in _SHARED:
        train = values.number("train_dataset", key)
        evaluation = values.number("eval_dataset", key)
        if train is None or evaluation is None or train == evaluation:
            continue
        said = f"do_eval: {key} is {evaluation} in eval_dataset, but {train} in train_dataset"
        if needed:
            hint = f"make them the same: --set eval_dataset.{key}={train}"
            values.wrong(said, ("eval_dataset", key), hint)
        else:
            values.odd(f"{said}; the guide has them equal", ("eval_dataset", key))


class _Values:
    """The YAML's values; what is wrong with them goes to ``review``."""

    def __init__(self, config: WorkerConfig, review: Strategy) -> None:
        self.config = config
        self.review = review

    def at(self, *path: str) -> object:
        """The value at ``path``; None where there is none."""
        value: object = self.config.values
        for key in path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        return value

    def number(self, *path: str, least: int = 1) -> Optional[int]:
        """The whole number at ``path``; None where there is none or a wrong one."""
        value = self.at(*path)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            message = f"{'.'.join(path)} is {shown(repr(value))}, not a number from {least} up"
            self.wrong(message, path, "correct it, or set it with --set")
            return None
        return value

    def wrong(self, message: str, path: Sequence[str], hint: str) -> None:
        self.review.problems.add(message, self.config.place(*path), hint)

    def odd(self, message: str, path: Sequence[str]) -> None:
        place = self.config.place(*path)
        self.review.warnings.append(f"{place}: {message}" if place else message)


def _divisors(number: int) -> str:
    found = [n for n in range(1, min(number, 4096) + 1) if number % n == 0]
    return f"one of {', '.join(map(str, found))}" if len(found) > 1 else str(found[0])
