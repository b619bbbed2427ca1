"""MindSpore's strategy files: one for each rank or pipeline stage, or all stages merged in one.

Read from ``ParallelStrategyMap`` (protobuf or JSON), MindSpore 2.10 ``node_strategy.proto``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.newfile import write_small
from orchestrator.checkpoints.wire import (
    Value,
    WireError,
    bytes_field,
    fields,
    repeated_ints,
    signed,
    varint_field,
)
from orchestrator.errors import CheckpointError

MAX_BYTES = 256 << 20
"""Longest strategy file that is read."""

MAX_RANKS = 1_000_000
"""More than any cluster has; keeps a corrupt strategy from filling the memory."""

_RANK_IN_NAME = re.compile(r"_rank_(\d+)\.(?:ckpt|json)$", re.ASCII)
_STAGE_PREFIX = re.compile(r"(\d{1,6})-(.+)", re.ASCII | re.DOTALL)

Layouts = Mapping[str, Layout]


@dataclass(frozen=True)
class Strategy:
    """The layouts of a whole job, pipeline stage by stage.

    Global rank = stage · ``stage_ranks`` + rank within the stage.
    """

    stages: Tuple[Layouts, ...]
    stage_ranks: int
    sources: Tuple[str, ...] = ()
    """Files that it was read from."""

    @property
    def world_size(self) -> int:
        return len(self.stages) * self.stage_ranks

    def stage_of(self, rank: int) -> int:
        return rank // self.stage_ranks

    def names(self) -> Tuple[str, ...]:
        """All parameters of the strategy, stage by stage, each once."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage))

    def layout(self, rank: int, name: str) -> Optional[Layout]:
        """Layout of a parameter in the stage of a global rank; None where it has none there."""
        return self.stages[self.stage_of(rank)].get(name)


def load_strategy(path: Path) -> Strategy:
    """Read a strategy file, or all strategy files (``*.ckpt``, ``*.json``) of a folder.

    Raises CheckpointError when a file is corrupt, two files of one stage disagree, or a stage is
    missing between the others; the message names the file.
    """
    return read_strategies({str(file): _read(file) for file in _strategy_files(path)}, str(path))


def read_strategies(contents: Mapping[str, bytes], where: str) -> Strategy:
    """The strategy of a job from the contents of its files, by file name; errors as
    ``load_strategy``, with ``where`` for the origin of them all."""
    stages: Dict[int, Layouts] = {}
    origin: Dict[int, str] = {}
    parsed: Dict[bytes, Mapping[int, Layouts]] = {}  # the ranks of a stage write equal files
    files = sorted(contents, key=_by_rank)
    for file in files:
        content = contents[file]
        if content not in parsed:
            parsed[content] = parse_strategy(content, file)
        for stage, layouts in parsed[content].items():
            _check_stage_of_name(file, stage, layouts)
            if stage not in stages:
                stages[stage], origin[stage] = layouts, file
            elif stages[stage] != layouts:
                raise _disagree(stage, origin[stage], stages[stage], file, layouts)
    return assemble(stages, files, where)


def assemble(stages: Mapping[int, Layouts], sources: Sequence[str], where: str) -> Strategy:
    """Put the stages of a job together; ``where`` names their origin in messages.

    Raises CheckpointError when stages are missing or differ in their number of ranks.
    """
    if not stages:
        raise CheckpointError(f"{where} holds no layout of any parameter")
    missing = sorted(set(range(max(stages) + 1)) - set(stages))
    if missing:
        raise CheckpointError(
            f"{where}: no strategy of pipeline stage {missing[0]} (found {sorted(stages)})",
            hint="collect the strategy files of all ranks",
        )
    sizes = {
        layout.ranks: (stage, name) for stage in stages for name, layout in stages[stage].items()
    }
    if len(sizes) != 1:
        found = ", ".join(
            f"{ranks} ranks for {name} in stage {stage}" for ranks, (stage, name) in sizes.items()
        )
        raise CheckpointError(f"{where}: layouts disagree on the ranks of a stage: {found}")
    ranks = next(iter(sizes))
    if ranks * len(stages) > MAX_RANKS:
        raise CheckpointError(f"{where} describes {ranks * len(stages)} ranks; that cannot be")
    return Strategy(tuple(stages[stage] for stage in sorted(stages)), ranks, tuple(sources))


def parse_strategy(content: bytes, source: str) -> Dict[int, Layouts]:
    """Layouts of each stage in a strategy file's content (protobuf, or JSON if it begins with
    ``{``). Names of merged files (``1-embedding``) lose their stage prefix.

    Raises CheckpointError naming ``source``.
    """
    try:
        if content.lstrip()[:1] == b"{":
            stage, found = _from_json(content)
        else:
            stage, found = _from_protobuf(content)
    except (WireError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source} is not a strategy file: {error}",
            hint="give the folder output/strategy of the training run",
        ) from error
    if not found:
        raise CheckpointError(
            f"{source} holds no layout of any parameter",
            hint="the file of a run without model or optimizer parallelism; merge without it",
        )
    prefixed = [_STAGE_PREFIX.fullmatch(name) for name in found]
    if not all(prefixed):
        return {stage: found}
    stages: Dict[int, Dict[str, Layout]] = {}
    for match, layout in zip(prefixed, found.values()):
        assert match is not None
        stages.setdefault(int(match[1]), {})[match[2]] = layout
    return dict(stages)


def strategy_bytes(strategy: Strategy, stage: Optional[int] = None) -> bytes:
    """Protobuf form: of one stage as a rank saves it, or (None) of all stages merged, with
    ``stage-`` before each name."""
    out = [varint_field(1, 1)]
    wanted = range(len(strategy.stages)) if stage is None else [stage]
    for number in wanted:
        item = bytes_field(1, b"glm2-orch") + bytes_field(2, varint_field(1, number))
        out.append(bytes_field(2, item))
    for number in wanted:
        for name, layout in strategy.stages[number].items():
            label = f"{number}-{name}" if stage is None else name
            item = bytes_field(1, label.encode()) + bytes_field(2, _layout_bytes(layout))
            out.append(bytes_field(3, item))
    return b"".join(out)


def save_strategy(strategy: Strategy, folder: Path) -> None:
    """Write ``ckpt_strategy_rank_N.ckpt`` of every rank, as a training run does."""
    for rank in range(strategy.world_size):
        data = strategy_bytes(strategy, strategy.stage_of(rank))
        write_small(folder / f"ckpt_strategy_rank_{rank}.ckpt", data)


def _strategy_files(path: Path) -> List[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"no strategy file or folder {path}")
    files = [
        file for file in path.iterdir() if file.suffix in (".ckpt", ".json") and file.is_file()
    ]
    if not files:
        raise CheckpointError(
            f"{path} holds no strategy file (*.ckpt, *.json)",
            hint="give the folder output/strategy of the training run, or leave the option out "
            "for plain data parallelism",
        )
    return files


def _rank_of(file: str) -> Optional[int]:
    match = _RANK_IN_NAME.search(file)
    return int(match[1]) if match and len(match[1]) <= 6 else None


def _by_rank(file: str) -> Tuple[int, str]:
    rank = _rank_of(file)
    return (-1 if rank is None else rank, file)


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise CheckpointError(
                f"{file} is too large for a strategy file", hint="is it a checkpoint?"
            )
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error


def _check_stage_of_name(file: str, stage: int, layouts: Layouts) -> None:
    """A file named for a rank must describe the stage which that rank is in."""
    rank = _rank_of(file)
    ranks = next(iter(layouts.values())).ranks
    if rank is not None and "merged" not in file.rsplit("/", 1)[-1] and rank // ranks != stage:
        raise CheckpointError(
            f"{file} describes pipeline stage {stage}, but rank {rank} is in stage "
            f"{rank // ranks} of {ranks} ranks each",
            hint="the folder mixes strategy files of different runs",
        )


def _disagree(stage: int, one: str, first: Layouts, other: str, second: Layouts) -> CheckpointError:
    for name in list(first) + list(second):
        if first.get(name) != second.get(name):
            return CheckpointError(
                f"{other} disagrees with {one} on {name} in stage {stage}: "
                f"expected {first.get(name)}, found {second.get(name)}",
                hint="the folder mixes strategy files of different runs",
            )
    raise AssertionError("called for equal layouts")


def _from_protobuf(content: bytes) -> Tuple[int, Dict[str, Layout]]:
    stage = 0
    layouts: Dict[str, Layout] = {}
    stage_known = False
    for number, value in fields(content):
        if number == 2 and not stage_known:
            stage, stage_known = _stage(_message(value)), True
        elif number == 3:
            name, layout = _layout_item(_message(value))
            if name in layouts:
                raise ValueError(f"{name} appears twice")
            layouts[name] = layout
    return stage, layouts


def _stage(item: bytes) -> int:
    for number, value in fields(item):
        if number == 2:
            for inner, stage in fields(_message(value)):
                if inner == 1 and isinstance(stage, int):
                    return _checked_stage(stage)
    raise ValueError("a strategy item without a stage")


def _checked_stage(stage: int) -> int:
    if not 0 <= stage < 100_000:
        raise ValueError(f"pipeline stage {stage}")
    return stage


def _layout_item(item: bytes) -> Tuple[str, Layout]:
    name: Optional[str] = None
    body: Optional[bytes] = None
    for number, value in fields(item):
        if number == 1:
            name = _message(value).decode("utf-8")
        elif number == 2:
            body = _message(value)
    if not name or body is None:
        raise ValueError("a layout without a name or a body")
    dev_matrix: Tuple[int, ...] = ()
    tensor_map: List[Tuple[int, ...]] = []
    scalars: Dict[int, int] = {}
    for number, value in fields(body):
        if number == 1:
            dev_matrix = dev_matrix or repeated_ints(_message(value), 1)
        elif number == 2:
            tensor_map.append(repeated_ints(_message(value), 1))
        elif number == 3 and repeated_ints(_message(value), 1):
            raise ValueError(
                f"{name} is split unevenly (param_split_shape), which is not supported"
            )
        elif number in (5, 6, 7) and isinstance(value, int):
            scalars[number] = signed(value)
    axes = _axes(tensor_map)
    return name, _layout(name, dev_matrix, axes, scalars.get(6, 0), scalars.get(7, 0))


def _axes(tensor_map: List[Tuple[int, ...]]) -> List[Tuple[int, ...]]:
    """One message: an entry for each axis. Several: a message for each axis, of the device axes
    that cut it together."""
    if len(tensor_map) == 1:
        return [(axis,) for axis in tensor_map[0]]
    return [axes for axes in tensor_map if axes]


def _layout(
    name: str,
    dev_matrix: Sequence[int],
    tensor_map: Sequence[Sequence[int]],
    step: int,
    size: int,
) -> Layout:
    cut = tuple(tuple(axis for axis in axes if axis != -1) for axes in tensor_map)
    try:
        return Layout(tuple(dev_matrix), cut, step, size)
    except ValueError as error:
        raise ValueError(f"layout of {name}: {error}") from error


def _from_json(content: bytes) -> Tuple[int, Dict[str, Layout]]:
    document = json.loads(content.decode("utf-8"))
    items = document.get("parallel_strategy_item") or {}
    stage = _checked_stage(int(next(iter(items.values()))["stage"])) if items else 0
    layouts: Dict[str, Layout] = {}
    for name, item in (document.get("parallel_layout_item") or {}).items():
        if item.get("param_split_shape"):
            raise ValueError(
                f"{name} is split unevenly (param_split_shape), which is not supported"
            )
        axes = [entry if isinstance(entry, list) else [entry] for entry in item["tensor_map"]]
        numbers = [*item["dev_matrix"], *(axis for entry in axes for axis in entry)]
        step, size = item.get("opt_weight_shard_step", 0), item.get("opt_weight_shard_size", 0)
        if not all(type(number) is int for number in [*numbers, step, size]):
            raise ValueError(f"layout of {name} has an entry that is not a whole number")
        layouts[name] = _layout(name, item["dev_matrix"], axes, step, size)
    return stage, layouts


def _message(value: Value) -> bytes:
    if isinstance(value, int):
        raise WireError("a number where a message was expected", 0)
    return value


def _layout_bytes(layout: Layout) -> bytes:
    def dims(number: int, values: Sequence[int]) -> bytes:
        return bytes_field(number, b"".join(varint_field(1, value) for value in values))

    out = dims(1, layout.dev_matrix)
    if all(len(axes) <= 1 for axes in layout.tensor_map):
        out += dims(2, [axes[0] if axes else -1 for axes in layout.tensor_map])
    else:
        out += b"".join(dims(2, axes or (-1,)) for axes in layout.tensor_map)
    out += dims(3, ()) + dims(4, ()) + varint_field(5, 0)
    return out + varint_field(6, layout.opt_shard_step) + varint_field(7, layout.opt_shard_size)
