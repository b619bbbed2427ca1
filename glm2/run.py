"""One run of the worker: settings, data, device and model put together."""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from glm2 import sample
from glm2.data import Batches, Row, read_rows
from glm2.errors import ConfigError, UsageError
from glm2.metrics import Metrics, say, warn
from glm2.settings import (
    Dataset,
    Settings,
    check_row_length,
    find_config,
    load_settings,
    needed,
)
from glm2.tokenizer import Tokenizer

if TYPE_CHECKING:  # MindSpore takes seconds to import; what can fail before it fails before it.
    from glm2.model import Glm2
    from glm2.parallel import Layout


@dataclass(frozen=True)
class Data:
    """The rows and the tokenizer of a mode."""

    dataset: Dataset
    rows: List[Row]
    tokenizer: Tokenizer


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Carry out the command line; returns the exit status."""
    settings = resolve(options, environ)
    mode = settings.run_mode
    if settings.unused:
        warn(f"these keys of the configuration have no effect: {', '.join(settings.unused)}")
    training = _data(settings, "train_dataset") if mode in ("train", "finetune") else None
    evaluation = _data(settings, "eval_dataset") if mode == "eval" or settings.do_eval else None
    questions = _questions(options.predict_data) if mode == "predict" else []

    # MindSpore reports every connection as a warning; errors remain.
    os.environ.setdefault("GLOG_v", "3")
    from glm2.checkpoint import find_weights, load_weights
    from glm2.parallel import layout_of, meet, start

    layout = layout_of(settings.parallel, settings.use_parallel, environ)
    weights = settings.load_checkpoint or settings.model.checkpoint_name_or_path
    file = find_weights(weights) if weights else None
    output = Path(settings.output_dir)
    rank_dir = environ.get("GLM2_RANK_DIR") or output / "log" / f"rank_{layout.rank}"
    metrics = Metrics(Path(rank_dir))
    metrics.phase("startup")
    batches = _batches(training, layout) if training else None
    say(f"{mode}: rank {layout.rank} of {layout.world_size} on {settings.device.target}")
    start(settings.device, layout, environ)
    model = _model(settings)
    if file:
        load_weights(model, file)
        say(f"loaded {file}")
    elif mode not in ("train", "finetune"):
        warn("no weights are loaded (--load_checkpoint): the answers come from a random model")

    status = 0
    if batches:
        from glm2.trainer import Trainer

        status = Trainer(model, batches, settings, layout, metrics, output).train()
    if evaluation and not status:
        _evaluate(model, evaluation, layout, metrics, output)
    if mode == "predict":
        _predict(model, questions, settings, layout, metrics)
    meet(layout)
    metrics.phase("done")
    return status


def resolve(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings of the file with the command line's options in place of the file's keys."""
    settings = load_settings(find_config(options.config), options.overrides)
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
            file = str(Path(given) / default) if Path(given).is_dir() else given
            dataset = needed(getattr(settings, name), f"{name}_dataset")
            changes[name] = dataclasses.replace(dataset, file=file)
    return dataclasses.replace(settings, **changes)


def _data(settings: Settings, name: str) -> Data:
    """Read the rows and the tokenizer; say which lines are no rows."""
    dataset = needed(settings.train if name == "train_dataset" else settings.eval, name)
    if name == "train_dataset":
        check_row_length(settings)
    rows = read_rows(sample.resolve(dataset.file))
    if rows.bad:
        shown = ", ".join(f"line {bad.line}: {bad.reason}" for bad in rows.bad[:5])
        more = f" and {len(rows.bad) - 5} more" if len(rows.bad) > 5 else ""
        warn(f"{dataset.file}: {len(rows.bad)} lines are no rows and left out: {shown}{more}")
    tokenizer = _tokenizer(dataset, settings)
    return Data(dataset, list(rows.rows), tokenizer)


def _tokenizer(dataset: Dataset, settings: Settings) -> Tokenizer:
    tokenizer = Tokenizer(sample.resolve(dataset.tokenizer))
    if tokenizer.vocab_size > settings.model.padded_vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, padded_vocab_size is "
            f"{settings.model.padded_vocab_size}",
            hint="use the tokenizer that belongs to the model",
        )
    return tokenizer


def _batches(data: Data, layout: Layout) -> Batches:
    return Batches(
        data.rows,
        data.tokenizer,
        data.dataset,
        ranks=layout.data_parallel,
        rank=layout.data_rank,
    )


def _model(settings: Settings) -> Glm2:
    import mindspore as ms

    from glm2.model import Glm2

    # The same seed on all ranks: they begin with the same weights.
    ms.set_seed(settings.seed)
    model = Glm2(settings.model)
    if settings.recompute:
        for layer in model.transformer.encoder.layers:
            layer.recompute()
    return model


def _evaluate(model: Glm2, data: Data, layout: Layout, metrics: Metrics, output: Path) -> None:
    from glm2 import evaluate

    metrics.phase("eval")
    scored = evaluate.evaluate(model, data.rows, data.tokenizer, data.dataset, layout)
    result = evaluate.summarise(scored, layout)
    file = evaluate.write_report(output / "eval", layout.rank, result, scored)
    metrics.result(result)
    say(f"answers and scores: {file}")
    print(evaluate.table(result), flush=True)


def _questions(given: Optional[List[str]]) -> List[str]:
    """The prompts of ``--predict_data``: texts, or files with one on each line.

    A backslash and n mean a line break, as the guide's commands write them in a shell.
    """
    if not given:
        raise UsageError(
            "predict needs --predict_data",
            hint=r'for example --predict_data "[Round 1]\n\n问：你好\n\n答："',
        )
    texts: List[str] = []
    for item in given:
        if len(item) < 1024 and Path(item).is_file():
            texts += [line for line in Path(item).read_text("utf-8").splitlines() if line.strip()]
        else:
            texts.append(item)
    if not texts:
        raise UsageError(f"--predict_data {' '.join(given)} holds no text")
    return [text.replace("\\n", "\n") for text in texts]


def _predict(
    model: Glm2, questions: List[str], settings: Settings, layout: Layout, metrics: Metrics
) -> None:
    """Answer the questions in order and print them as the guide does."""
    from glm2.generate import Generator, Sampling

    dataset = settings.eval or settings.train
    tokenizer = _tokenizer(needed(dataset, "eval_dataset"), settings)
    config = settings.model
    mine = [tokenizer.encode(text) for text in questions[layout.data_rank :: layout.data_parallel]]
    if not mine:
        return
    width = max(map(len, mine))
    generator = Generator(
        model,
        batch=min(config.batch_size, len(mine)),
        width=width,
        capacity=min(max(config.max_decode_length, width + 1), config.seq_length),
        use_past=config.use_past,
    )
    sampling = Sampling.of(config, settings.seed)
    answers: List[str] = []
    for first in range(0, len(mine), generator.batch):
        prompts = mine[first : first + generator.batch]
        for prompt, tokens in zip(prompts, generator.generate(prompts, sampling)):
            answers.append(tokenizer.decode([*prompt, *tokens]))
            print([{"text_generation_text": [answers[-1]]}], flush=True)
    metrics.result({"predictions": answers})
