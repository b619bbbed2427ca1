"""One run of the worker: settings, device, data and model put together."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

from glm2 import sample
from glm2.errors import ConfigError
from glm2.metrics import Metrics, say, warn
from glm2.settings import Dataset, Settings, find_config, load_settings


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Carry out the command line; returns the exit status."""
    settings = _settings(options, environ)
    if settings.unused:
        warn(f"these keys of the configuration have no effect: {', '.join(settings.unused)}")
    # MindSpore reports every connection as a warning; errors remain.
    os.environ.setdefault("GLOG_v", "3")
    from glm2.parallel import layout_of, meet, start

    layout = layout_of(settings.parallel, settings.use_parallel, environ)
    output = Path(settings.output_dir)
    folder = environ.get("GLM2_RANK_DIR") or output / "log" / f"rank_{layout.rank}"
    metrics = Metrics(Path(folder))
    metrics.phase("startup")
    work = _train(settings, output, metrics, layout)
    say(f"rank {layout.rank} of {layout.world_size} on {settings.device.target}")
    start(settings.device, layout, environ)
    status = work()
    meet(layout)
    metrics.phase("done")
    return status


def _train(settings: Settings, output: Path, metrics: Metrics, layout: Any) -> Any:
    from glm2.data import Batches, read_rows
    from glm2.tokenizer import Tokenizer

    dataset = _needed(settings.train, "train_dataset", settings)
    tokenizer = Tokenizer(sample.resolve(dataset.tokenizer))
    rows = read_rows(sample.resolve(dataset.file))
    batches = Batches(
        rows.rows, tokenizer, dataset, ranks=layout.data_parallel, rank=layout.data_rank
    )

    def work() -> int:
        import mindspore as ms

        from glm2.model import Glm2
        from glm2.trainer import Trainer

        ms.set_seed(settings.seed)
        model = Glm2(settings.model)
        return Trainer(model, batches, settings, layout, metrics, output).train()

    return work


def _needed(dataset: "Dataset | None", name: str, settings: Settings) -> Dataset:
    if dataset is None:
        raise ConfigError(f"the configuration has no {name}")
    return dataset


def _settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    settings = load_settings(find_config(options.config), options.overrides)
    changes: Dict[str, Any] = {}
    output = options.output_dir or environ.get("GLM2_OUTPUT_DIR")
    if output:
        changes["output_dir"] = output
    if options.run_mode:
        changes["run_mode"] = options.run_mode
    if options.use_parallel is not None:
        changes["use_parallel"] = options.use_parallel
    return dataclasses.replace(settings, **changes)
