"""Weights between the official Hugging Face files and MindSpore's, one tensor at a time.

The two differ in one name and in a constant: the embedding table is ``embedding_table`` in
MindSpore's files and ``word_embeddings.weight`` in the official ones, which also carry the
frequencies of the rotary embedding. Values are copied bit by bit unless another type is asked
for. Needs neither MindSpore nor PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Sequence

from glm2.adapters import is_adapter
from glm2.config import FLOAT_TYPES, ModelConfig
from glm2.errors import CheckpointError, ConfigError, Glm2Error, UsageError
from glm2.formats import hub
from glm2.formats.cast import Cast
from glm2.formats.ckpt import write_ckpt
from glm2.formats.safetensors import write_safetensors
from glm2.formats.source import Source, find_source
from glm2.formats.tensor import Content, Shape, nbytes
from glm2.settings import find_config, load_settings
from glm2.weights import is_state, listed, weight_shapes

FORMATS = ("ckpt", "safetensors", "hf")
DEFAULT_SHARD = "5GB"

_OURS = "embedding.embedding_table"
_THEIRS = "embedding.word_embeddings.weight"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Progress = Callable[[int, int, str], None]
"""Called with the bytes written, the bytes of all, and the name of the tensor at hand."""


@dataclass(frozen=True)
class Weights:
    """Tensors that are the weights of a network, under MindSpore's names and in its order."""

    config: ModelConfig
    tensors: Sequence[Cast]
    left_out: Sequence[str]
    """Tensors of the source that are no weights: the optimizer's state, and constants."""

    @property
    def dtype(self) -> str:
        """The type of the embedding table, which is that of almost all others."""
        return self.tensors[0].dtype

    @property
    def nbytes(self) -> int:
        return sum(nbytes(tensor) for tensor in self.tensors)


def command(words: Sequence[str]) -> int:
    """``python -m glm2 convert``; returns the exit status."""
    options = _parser().parse_args(words)
    source = find_source(options.source)
    kind = options.format or _format_of(options.target)
    config = _config(options.config, source)
    weights = select(source, config, options.dtype)
    with _shown() as progress:
        convert(weights, options.target, kind, size_of(options.max_shard_size), progress)
    print(
        f"{len(weights.tensors)} weights, {_gb(weights.nbytes)} {weights.dtype}: "
        f"{source.path} → {options.target}"
    )
    if weights.left_out:
        print(f"left out, as they are no weights: {_some(weights.left_out)}")
    return 0


def select(source: Source, config: ModelConfig, dtype: Optional[str] = None) -> Weights:
    """The weights of a source, checked against the network and given ``dtype`` where it is set.

    CheckpointError lists all that differ: missing and unexpected names, shapes, types.
    """
    found = {name: tensor for name, tensor in source.tensors.items() if not is_state(name)}
    ours: Dict[str, str] = {}
    problems: List[str] = []
    for name in found:
        known = ours.setdefault(name.replace(_THEIRS, _OURS), name)
        if known != name:
            problems.append(f"{known} and {name} are the same weight")
    wanted = weight_shapes(config)
    problems += [f"missing {name}" for name in wanted if name not in ours]
    problems += [f"unexpected {theirs}" for name, theirs in ours.items() if name not in wanted]
    problems += [
        f"{theirs} is {list(found[theirs].shape)}, the network needs {list(wanted[name])}"
        for name, theirs in ours.items()
        if name in wanted and found[theirs].shape != wanted[name]
    ]
    problems += [
        f"{name} is {tensor.dtype}, not one of {', '.join(FLOAT_TYPES)}"
        for name, tensor in found.items()
        if tensor.dtype not in FLOAT_TYPES
    ]
    if problems:
        hint = (
            "--config names the network: a YAML of glm2, or the official config.json; without "
            "it, config.json beside the weights counts, or else ChatGLM2-6B"
        )
        if any(map(is_adapter, found)):
            hint = (
                "make LoRA's adapters part of the weights first: glm2-orch merge-ckpt --lora_alpha"
            )
        raise CheckpointError(
            f"{source.path} does not hold the weights of this network "
            f"({config.num_layers} layers, hidden size {config.hidden_size}):" + listed(problems),
            hint=hint,
        )
    tensors = [Cast(name, dtype or found[ours[name]].dtype, found[ours[name]]) for name in wanted]
    return Weights(config, tensors, [name for name in source.tensors if is_state(name)])


def convert(
    weights: Weights, target: Path, kind: str, max_shard: int, progress: Optional[Progress] = None
) -> None:
    """Write the weights: one file (``ckpt``, ``safetensors``), or the folder of ``hf``.

    The file, or each file of the folder and its index last, appears whole or not at all, and
    after an error none of them is left.
    UsageError when there are weights already: nothing is overwritten.
    """
    _refuse_existing(target, kind)
    report = progress or (lambda done, total, name: None)
    try:
        folder = target if kind == "hf" else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < weights.nbytes:
            raise Glm2Error(
                f"{folder} has {_gb(free)} left, the weights need {_gb(weights.nbytes)}",
                hint="make room, or write to another disk",
            )
        if kind == "hf":
            _write_folder(weights, folder, max_shard, report)
        else:
            counted = _counted(weights.tensors, weights.nbytes, report)
            with _whole_file(target) as out:
                if kind == "ckpt":
                    write_ckpt(out, counted)
                else:
                    write_safetensors(out, counted, {})
    except OSError as error:
        raise Glm2Error(
            f"{target} cannot be written: {error.strerror}",
            hint="see that the folder can be written and has room; nothing is left half written",
        ) from error


def size_of(text: str) -> int:
    """Bytes of a size such as ``5GB`` or ``500MiB``; UsageError for another text."""
    number = text.rstrip("BKMGibkmgI")
    unit = _UNITS.get(text[len(number) :].strip().upper() or "B")
    if unit is None or not number.strip().isdecimal() or int(number) < 1:
        raise UsageError(f"{text!r} is no size", hint="write it as 5GB, 500MB or 2GiB")
    return int(number) * unit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glm2 convert",
        description="Convert weights between Hugging Face's files and MindSpore's, either way.",
        epilog="examples:\n"
        "  python -m glm2 convert --from chatglm2-6b --to glm2_6b.ckpt\n"
        "  python -m glm2 convert --from glm2_6b.ckpt --to chatglm2-6b-tuned --format hf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="PATH", type=Path,
        help="a folder of shards or of one file, an index of shards, or a file: "
        ".safetensors, .bin, .pth, .ckpt")  # fmt: skip
    add("--to", dest="target", required=True, metavar="PATH", type=Path,
        help="a new .ckpt or .safetensors with MindSpore's names, or a folder for hf")  # fmt: skip
    add("--format", choices=FORMATS, help="default: by the ending of --to; a folder is hf")
    add("--dtype", choices=FLOAT_TYPES, help="convert all weights; default: they keep their type")
    add("--max_shard_size", default=DEFAULT_SHARD, metavar="SIZE",
        help=f"of each file that hf writes; default {DEFAULT_SHARD}")  # fmt: skip
    add("--config", metavar="FILE",
        help="the network: YAML of glm2 or config.json; default: config.json beside the weights, "
        "else ChatGLM2-6B")  # fmt: skip
    return parser


def _format_of(target: Path) -> str:
    if target.is_dir() or not target.suffix:
        return "hf"
    if target.suffix[1:] in FORMATS:
        return target.suffix[1:]
    raise UsageError(
        f"--to {target} does not say what to write",
        hint="end it in .ckpt or .safetensors, give a folder, or add --format",
    )


def _config(given: Optional[str], source: Source) -> ModelConfig:
    if given is None:
        beside = source.path.parent / "config.json"
        return hub.read_config(beside) if beside.is_file() else ModelConfig()
    if not given.endswith(".json"):
        return load_settings(find_config(given)).model
    if not Path(given).is_file():
        raise ConfigError(f"there is no configuration {given}")
    return hub.read_config(Path(given))


def _refuse_existing(target: Path, kind: str) -> None:
    if kind != "hf":
        if target.exists():
            raise UsageError(f"{target} is there already", hint="remove it, or give another name")
        return
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is no folder", hint="hf writes a folder of files")
    there = sorted(target.glob("*.safetensors*")) if target.is_dir() else []
    if there:
        raise UsageError(
            f"{target} has weights already: {there[0].name}",
            hint="remove them, or give another folder",
        )


def _write_folder(weights: Weights, folder: Path, max_shard: int, report: Progress) -> None:
    tensors: List[Content] = [
        Cast(tensor.name.replace(_OURS, _THEIRS), tensor.dtype, tensor.source)
        for tensor in weights.tensors
    ]
    # The official files have it behind the embedding table.
    tensors.insert(1, hub.inverse_frequencies(weights.config, weights.dtype))
    shards = hub.shard(_counted(tensors, weights.nbytes, report), max_shard)
    config = folder / "config.json"
    with contextlib.ExitStack() as undo:
        if not config.exists():
            with _whole_file(config) as out:
                out.write(hub.config_text(weights.config, weights.dtype).encode())
            undo.callback(config.unlink)
        for name, group in shards.items():
            with _whole_file(folder / name) as out:
                write_safetensors(out, group, {"format": "pt"})
            undo.callback((folder / name).unlink)
        if len(shards) > 1:
            with _whole_file(folder / hub.INDEX) as out:
                out.write(hub.index_text(shards).encode())
        undo.pop_all()


@contextlib.contextmanager
def _whole_file(file: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when all of it is on the disk, or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Counted:
    """A tensor whose blocks are reported as they are read."""

    content: Content
    add: Callable[[int, str], None]

    @property
    def name(self) -> str:
        return self.content.name

    @property
    def dtype(self) -> str:
        return self.content.dtype

    @property
    def shape(self) -> Shape:
        return self.content.shape

    def blocks(self) -> Iterator[bytes]:
        for block in self.content.blocks():
            self.add(len(block), self.name)
            yield block


def _counted(tensors: Sequence[Content], total: int, report: Progress) -> List[Content]:
    done = 0

    def add(count: int, name: str) -> None:
        nonlocal done
        done += count
        report(done, total, name)

    return [_Counted(tensor, add) for tensor in tensors]


@contextlib.contextmanager
def _shown() -> Iterator[Progress]:
    """Progress on standard error: a line that is written over on a terminal, else every tenth."""
    terminal = sys.stderr.isatty()
    shown_at, tenth = 0.0, 0

    def show(done: int, total: int, name: str) -> None:
        nonlocal shown_at, tenth
        now = time.monotonic()
        text = f"{100 * done // total:3d} %  {_gb(done)} of {_gb(total)}  {name}"
        if terminal and (now - shown_at > 0.1 or done == total):
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            shown_at = now
        elif not terminal and 10 * done // total > tenth:
            print(text, file=sys.stderr, flush=True)
            tenth = 10 * done // total

    try:
        yield show
    finally:
        if terminal and shown_at:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
