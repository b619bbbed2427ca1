"""One run of the worker: settings, data, device and model put together."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from glm2 import sample, stacks
from glm2.answers import AnswerFile
from glm2.data import Batches, Row, good_rows
from glm2.errors import ConfigError
from glm2.metrics import Metrics, say, warn
from glm2.prompts import read_prompts
from glm2.sampling import Sampling
from glm2.settings import (
    Dataset,
    Settings,
    check_row_length,
    find_config,
    load_settings,
    needed,
)
from glm2.tokenizer import Tokenizer, tokenizer_for

if TYPE_CHECKING:  # MindSpore takes seconds to import; what can fail before it fails before it.
    from glm2.model import Glm2
    from glm2.parallel import Layout
    from glm2.resume import Source
    from glm2.weights import Progress


@dataclass(frozen=True)
class Data:
    """The rows and the tokenizer of a mode."""

    dataset: Dataset
    rows: List[Row]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Rank:
    """This process at work."""

    settings: Settings
    layout: Layout
    metrics: Metrics
    model: Glm2

    @property
    def output(self) -> Path:
        return Path(self.settings.output_dir)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: int
    """The exit status: 0, or that of a training stopped on request."""
    result: Dict[str, Any]
    """Scores of eval, ``predictions`` of predict, ``checkpoint`` of training."""


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Carry out the command line; returns the exit status."""
    return work(resolve(options, environ), options.predict_data or [], environ).status


def work(settings: Settings, predict_data: Sequence[str], environ: Mapping[str, str]) -> Outcome:
    """Carry out ``run_mode`` of the settings as this rank."""
    mode, training = settings.run_mode, settings.run_mode in ("train", "finetune")
    if settings.unused:
        warn(f"these keys of the configuration have no effect: {', '.join(settings.unused)}")
    train_data = _data(settings, "train_dataset") if training else None
    evaluate = mode == "eval" or (training and settings.do_eval)
    eval_data = _data(settings, "eval_dataset") if evaluate else None
    questions = read_prompts(predict_data) if mode == "predict" else []

    # MindSpore reports every connection as a warning; errors remain.
    os.environ.setdefault("GLOG_v", "3")
    from glm2.build import build_model
    from glm2.checkpoint import find_weights
    from glm2.parallel import layout_of, meet, start, together
    from glm2.resume import source_of

    layout = layout_of(settings.parallel, settings.use_parallel, environ)
    batches = _batches(train_data, layout, settings) if train_data else None
    source = source_of(settings, layout.rank) if training and settings.resume else None
    weights = settings.model.checkpoint_name_or_path
    if not source:
        weights = settings.load_checkpoint or weights
    file = find_weights(weights) if weights else None
    own = Path(settings.output_dir) / "log" / f"rank_{layout.rank}"
    metrics = Metrics(Path(environ.get("GLM2_RANK_DIR") or own))
    stacks.offer(metrics.file.parent)
    metrics.phase("startup")
    say(f"{mode}: rank {layout.rank} of {layout.world_size} on {settings.device.target}")
    start(settings.device, layout, environ)
    with together():
        rank = Rank(settings, layout, metrics, build_model(settings, file, layout))
        status, result = 0, {}
        if batches:
            status, file = _train(rank, batches, eval_data, source)
            result = {"checkpoint": str(file)}
        elif eval_data:
            result = _evaluate(rank, eval_data)
        if questions:
            result = {"predictions": _predict(rank, questions)}
        meet(layout)
    metrics.phase("done")
    return Outcome(status, result)


def resolve(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings of the file with the command line's options in place of the file's keys."""
    overrides = list(options.overrides)
    if options.resume_training:
        overrides.append(f"resume_training={options.resume_training}")
    settings = load_settings(find_config(options.config), overrides)
    changes: Dict[str, Any] = {}
    output = options.output_dir or environ.get("GLM2_OUTPUT_DIR")
    if output:
        changes["output_dir"] = output
    for name in ("run_mode", "load_checkpoint", "use_parallel"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    if options.device_id is not None:
        changes["device"] = dataclasses.replace(settings.device, id=options.device_id)
    for name, given, default in (
        ("train", options.train_dataset_dir, "train.json"),
        ("eval", options.eval_dataset_dir, "dev.json"),
    ):
        if given is not None:
            dataset = needed(getattr(settings, name), f"{name}_dataset")
            changes[name] = dataset.at(given, default)
    return dataclasses.replace(settings, **changes)


def _data(settings: Settings, name: str) -> Data:
    """Read the rows and the tokenizer."""
    dataset = needed(settings.train if name == "train_dataset" else settings.eval, name)
    if name == "train_dataset":
        check_row_length(settings)
    rows = good_rows(dataset)
    tokenizer = tokenizer_for(settings.model, sample.resolve(dataset.tokenizer))
    return Data(dataset, rows, tokenizer)


def _batches(data: Data, layout: Layout, settings: Settings) -> Batches:
    return Batches(
        data.rows,
        data.tokenizer,
        data.dataset,
        ranks=layout.data_parallel,
        rank=layout.data_rank,
        accumulation=settings.accumulation,
    )


def _train(
    rank: Rank, batches: Batches, eval_data: Optional[Data], source: Optional[Source]
) -> Tuple[int, Path]:
    """The exit status and the newest checkpoint."""
    from glm2.parallel import steps_of_ranks
    from glm2.resume import choose
    from glm2.trainer import Trainer

    def evaluate(progress: Progress) -> None:
        if eval_data:
            _evaluate(rank, eval_data, progress)

    trainer = Trainer(
        rank.model,
        batches,
        rank.settings,
        rank.layout,
        rank.metrics,
        rank.output,
        evaluate if eval_data else None,
    )
    if source:
        file = choose(source, lambda step: steps_of_ranks(rank.layout, step))
        trainer.resume(file)
    status = trainer.train()
    assert trainer.newest, "training always saves"
    return status, trainer.newest


def _evaluate(rank: Rank, data: Data, progress: Optional[Progress] = None) -> Dict[str, float]:
    """Score the model; in the course of training under the number of its step."""
    from glm2 import evaluate

    rank.metrics.phase("eval")
    folder = rank.output / "eval"
    # Answers in the course of training belong to weights that no file holds.
    kept = None if progress else _kept_answers(rank, data, folder)
    if progress:
        folder = folder / f"step_{progress.step_num}"
    scored = evaluate.evaluate(
        rank.model,
        data.rows,
        data.tokenizer,
        data.dataset,
        rank.layout,
        sampling=Sampling.of(rank.settings.model, rank.settings.seed),
        kept=kept,
    )
    result = evaluate.summarise(scored, rank.layout)
    every = evaluate.gathered(scored, rank.layout)
    if rank.layout.rank == 0:
        say(f"answers and scores: {evaluate.write_report(folder, result, every)}")
    if kept and scored:
        kept.remove()
    step = {"step": progress.step_num, "epoch": progress.epoch_num} if progress else {}
    rank.metrics.result({**step, **result})
    print(evaluate.table(result), flush=True)
    return result


def _kept_answers(rank: Rank, data: Data, folder: Path) -> AnswerFile:
    """The answers of this rank that a killed evaluation of the same weights and rows left."""
    settings = rank.settings
    asked = {
        "weights": [
            _stamp(settings.load_checkpoint),
            _stamp(settings.model.checkpoint_name_or_path),
        ],
        "model": dataclasses.asdict(settings.model),
        "seed": settings.seed,
        "dataset": dataclasses.asdict(data.dataset),
        "rows": [dataclasses.astuple(row) for row in data.rows],
        "ranks": [rank.layout.data_rank, rank.layout.data_parallel],
    }
    return AnswerFile(folder / f"answers_rank_{rank.layout.rank}.jsonl", asked)


def _stamp(weights: str) -> Optional[List[Any]]:
    """What changes when a file of weights does; None where there is none."""
    from glm2.checkpoint import find_weights

    try:
        file = find_weights(weights)
    except ConfigError:
        return None
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]


def _predict(rank: Rank, questions: List[str]) -> List[str]:
    """Answer the questions and print them as the guide does; of several ranks each answers its
    share, and rank 0 has all of them in order.

    On a terminal, each answer is shown as it grows instead.
    """
    from glm2.parallel import texts_of_ranks
    from glm2.predict import predict, tokenizer_file

    settings, layout = rank.settings, rank.layout
    tokenizer = tokenizer_for(settings.model, tokenizer_file(settings))
    mine = questions[layout.data_rank :: layout.data_parallel]
    alone = layout.world_size == 1
    terminal = sys.stdout.isatty()
    show = functools.partial(print, end="", flush=True) if terminal and alone else None
    sampling = Sampling.of(settings.model, settings.seed)
    answers: List[str] = []
    tokens, begun = 0, time.monotonic()
    for answer in predict(rank.model, tokenizer, mine, sampling, show) if mine else ():
        answers.append(answer.text)
        tokens += answer.tokens
        if alone:
            print("" if terminal else [{"text_generation_text": [answer.text]}], flush=True)
    took = max(time.monotonic() - begun, 1e-9)
    say(f"{tokens} tokens in {took:.1f} s, {tokens / took:.1f} tokens/s with compilation")
    if not alone:
        told = "[]" if layout.model_rank else json.dumps(answers, ensure_ascii=False)
        shares = [json.loads(share) for share in texts_of_ranks(layout, told)]
        shares = shares[:: layout.model_parallel]
        answers = [shares[i % len(shares)][i // len(shares)] for i in range(len(questions))]
        if layout.rank:
            return answers
        for text in answers:
            print([{"text_generation_text": [text]}], flush=True)
    rank.metrics.result({"predictions": answers})
    return answers
