"""``python -m glm2 export``: the prefill and increment graphs of a model, as MindIR files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from glm2 import sample
from glm2.config import ModelConfig
from glm2.data import Batches, good_rows
from glm2.errors import ConfigError, Glm2Error, UsageError
from glm2.infer_section import Graphs
from glm2.metrics import Metrics, say, warn
from glm2.runtimes import graph_file
from glm2.settings import Settings, find_config, load_settings, needed
from glm2.tokenizer import tokenizer_for

if TYPE_CHECKING:  # MindSpore takes seconds to import; what can fail before it fails before it.
    from glm2.model import Glm2

SCHEMA = 1


class Rows(NamedTuple):
    """Rows to measure perplexity on: how many, and their ids and labels [B, T] by batches."""

    count: int
    batches: List[Tuple[np.ndarray, np.ndarray]]


def command(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Export the model of a configuration; returns the exit status."""
    options = _parser().parse_args(words)
    settings = _settings(options)
    if settings.unused:
        warn(f"these keys of the configuration have no effect: {', '.join(settings.unused)}")
    graphs = _graphs(settings, options, environ)
    rows = _measured_rows(settings) if options.int8 else None

    os.environ.setdefault("GLOG_v", "3")
    from glm2.build import build_model
    from glm2.checkpoint import find_weights
    from glm2.parallel import Layout, start

    file = find_weights(settings.load_checkpoint)
    own = Path(settings.output_dir) / "log" / "rank_0"
    metrics = Metrics(Path(environ.get("GLM2_RANK_DIR") or own))
    metrics.phase("startup")
    start(settings.device, Layout(), environ)
    model = build_model(settings, file)
    result = to_int8(model, rows) if options.int8 else None
    metrics.phase("compile")
    weights = "int8" if options.int8 else settings.model.param_init_type
    export(model, graphs, settings.device.target, weights, result)
    if result:
        metrics.result(dataclasses.asdict(result))
    metrics.phase("done")
    return 0


@dataclass(frozen=True)
class Quality:
    """What int8 weights cost: the perplexity of the evaluation rows' summaries."""

    rows: int
    perplexity: float
    """With the weights as they were loaded."""
    perplexity_int8: float
    cost_percent: float

    def text(self) -> str:
        return (
            f"perplexity of {self.rows} rows: {self.perplexity:.4f}, with int8 weights "
            f"{self.perplexity_int8:.4f} ({self.cost_percent:+.3f} %)"
        )


def to_int8(model: Glm2, rows: Optional[Rows]) -> Optional[Quality]:
    """Give the model int8 weights; returns what that costs on ``rows``, None without rows."""
    from glm2.quantize import perplexity, quantize

    before = perplexity(model, rows.batches) if rows else 0.0
    say(f"{quantize(model)} linear layers have int8 weights")
    if not rows:
        warn("the configuration has no eval_dataset: the cost in perplexity is not measured")
        return None
    after = perplexity(model, rows.batches)
    quality = Quality(rows.count, before, after, 100 * (after / before - 1))
    print(quality.text(), flush=True)
    return quality


def export(
    model: Glm2, graphs: Graphs, target: str, weights: str, quality: Optional[Quality] = None
) -> None:
    """Write the two graphs and their manifest; what was there is replaced once all is written.

    ``target`` is the device that the graphs are for, and ``weights`` the type of the weights.

    Above 1 GB MindSpore writes ``{name}_graph.mindir`` and the weights beside it, in
    ``{name}_variables``. Glm2Error when a file cannot be written.
    """
    import mindspore as ms
    from mindspore import Tensor

    from glm2.graphs import Increment, Prefill
    from glm2.layers import float_type

    config = model.config
    batch, length = config.batch_size, config.seq_length
    row = Tensor(np.ones(batch, np.int32))
    cache = Tensor(
        np.zeros((batch * config.groups, length, config.kv_channels), np.float16)
    ).astype(float_type(config.compute_dtype))
    ids = Tensor(np.zeros((batch, length), np.int32))
    caches = [cache] * 2 * config.num_layers
    paths = (graphs.prefill, graphs.increment)
    hidden = [path.parent / f".{path.stem}" for path in paths]
    try:
        for path, folder, cell, inputs in (
            (paths[0], hidden[0], Prefill(model, batch), (ids, row)),
            (paths[1], hidden[1], Increment(model, batch), (row, row, *caches)),
        ):
            cell.set_train(False)
            say(f"compiling {path}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            ms.export(cell, *inputs, file_name=str(folder / path.name), file_format="MINDIR")
        temporary = hidden[0] / graphs.manifest.name
        temporary.write_text(_manifest_text(config, graphs, target, weights, quality), "utf-8")
        # Without a manifest no graphs are used: never one of these with one of those before.
        graphs.manifest.unlink(missing_ok=True)
        for folder, path in zip(hidden[::-1], paths[::-1]):
            _move(folder, path)
    except (OSError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise Glm2Error(
            f"the graphs cannot be written to {graphs.prefill.parent}: {lines[0] if lines else ''}",
            hint="see that the folder can be written and has room for the weights twice",
        ) from error
    finally:
        for folder in hidden:
            shutil.rmtree(folder, ignore_errors=True)
    written = (graph_file(graphs.prefill), graph_file(graphs.increment), graphs.manifest)
    say(f"wrote {', '.join(map(str, written))}")


def _manifest_text(
    config: ModelConfig, graphs: Graphs, target: str, weights: str, quality: Optional[Quality]
) -> str:
    """What ``infer`` needs to know of the two graphs, as JSON."""
    manifest: Dict[str, object] = {
        "schema": SCHEMA,
        # Adapters are part of the weights by now.
        "model_config": dataclasses.asdict(dataclasses.replace(config, pet_config=None)),
        "device_target": target,
        "weights": weights,
        "increment": os.path.relpath(graphs.increment, graphs.prefill.parent),
        "quality": dataclasses.asdict(quality) if quality else None,
    }
    return json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"


def _move(hidden: Path, path: Path) -> None:
    """Put what is written for ``path`` into its place, instead of an earlier export; the manifest
    last."""
    for old in (path, path.with_name(f"{path.stem}_graph.mindir")):
        old.unlink(missing_ok=True)
    shutil.rmtree(path.with_name(f"{path.stem}_variables"), ignore_errors=True)
    for new in sorted(hidden.iterdir(), key=lambda file: file.suffix == ".json"):
        new.replace(path.parent / new.name)


def _settings(options: argparse.Namespace) -> Settings:
    """Settings of the file with the command line's options in place of the file's keys."""
    settings = load_settings(find_config(options.config), options.overrides)
    weights = options.load_checkpoint or settings.load_checkpoint
    weights = weights or settings.model.checkpoint_name_or_path
    if not weights:
        raise UsageError(
            "there are no weights to export",
            hint="give --load_checkpoint, or set model.model_config.checkpoint_name_or_path",
        )
    # The network as predict has it: LoRA's adapters become part of the weights.
    settings = dataclasses.replace(settings, load_checkpoint=weights, run_mode="predict")
    if options.device_id is not None:
        device = dataclasses.replace(settings.device, id=options.device_id)
        settings = dataclasses.replace(settings, device=device)
    if options.eval_dataset_dir is not None:
        dataset = needed(settings.eval, "eval_dataset").at(options.eval_dataset_dir, "dev.json")
        settings = dataclasses.replace(settings, eval=dataset)
    return settings


def _graphs(settings: Settings, options: argparse.Namespace, environ: Mapping[str, str]) -> Graphs:
    if settings.graphs is None:
        raise ConfigError(
            "the configuration has no section infer",
            hint="add infer.prefill_model_path and infer.increment_model_path, "
            "as the shipped export_glm2_6b has them",
        )
    graphs = settings.graphs.below(Path(options.output_dir or environ.get("GLM2_OUTPUT_DIR", "")))
    return graphs.int8() if options.int8 else graphs


def _measured_rows(settings: Settings) -> Optional[Rows]:
    """The evaluation rows, as they would be trained on, cut to the model's sequence."""
    dataset = settings.eval
    if dataset is None:
        return None
    found = good_rows(dataset)
    tokenizer = tokenizer_for(settings.model, sample.resolve(dataset.tokenizer))
    whole = dataclasses.replace(dataset, shuffle=False, drop_remainder=False, learn_padding=False)
    length = settings.model.seq_length
    batches = [
        (ids[:, :length], labels[:, :length])
        for ids, labels in Batches(found, tokenizer, whole).epoch(0)
    ]
    return Rows(len(found), batches)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glm2 export",
        description="Write the two graphs of a model, for `python -m glm2 infer`: prefill and "
        "increment, as MindIR files at the paths of the section infer.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", "--config_path", required=True, metavar="FILE",
        help="YAML with the section infer, or a shipped name")  # fmt: skip
    add("--load_checkpoint", metavar="F", help="default: as the file says")
    add("--int8", action="store_true",
        help="int8 weights in the linear layers; files end in _int8, and the cost in perplexity "
        "on eval_dataset is reported")  # fmt: skip
    add("--eval_dataset_dir", metavar="D", help="dev.json, or its folder, for --int8")
    add("--output_dir", metavar="D",
        help="where relative paths begin; default: GLM2_OUTPUT_DIR, else this folder")  # fmt: skip
    add("--device_id", type=int, metavar="N", help="default: that of the file")
    add("--set", dest="overrides", action="append", default=[], metavar="K=V",
        help="set a key of the file, such as model.model_config.batch_size=4")  # fmt: skip
    return parser
