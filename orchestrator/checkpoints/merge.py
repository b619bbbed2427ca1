"""Merge the shards of a distributed checkpoint, or cut them anew, at the speed of a copy.

Way of the data: list and choose the files of one step (``catalogue``), index them (``shards``),
put every tensor together on paper (``assemble``), check it (``checks``), lay out the new files,
then move the bytes (``output``, ``transfer``). Nothing is written before everything that can be
checked without reading content has been checked; what is written appears under its name only when
it is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

from orchestrator import __version__
from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.catalogue import FORMATS
from orchestrator.checkpoints.checkpoint import Checkpoint, Reading, open_checkpoint
from orchestrator.checkpoints.checksum import sha256_of_all
from orchestrator.checkpoints.geometry import whole
from orchestrator.checkpoints.newfile import write_small
from orchestrator.checkpoints.output import OutputFile, write_files
from orchestrator.checkpoints.strategy import save_strategy
from orchestrator.checkpoints.target import Target, cut_for_target, target_strategy
from orchestrator.checkpoints.workers import Progress, no_progress
from orchestrator.errors import CheckpointError

DEFAULT_PREFIX = "checkpoint_"
"""Prefix of merged files, as in MindFormers' transform_ckpt.py."""


@dataclass(frozen=True)
class MergeReport:
    """What was written. ``output`` is the merged file, the index of its parts where it was cut by
    size, or the folder of the ranks; ``nbytes`` the size of all ``files`` together."""

    output: Path
    files: Tuple[Path, ...]
    manifest: Path
    step: str
    ranks: Tuple[int, ...]
    tensors: int
    nbytes: int
    notes: Tuple[str, ...]


def merge(
    src_dir: Path,
    strategy: Optional[Path],
    dst: Path,
    *,
    step: Union[int, str, None] = None,
    fmt: str = "ckpt",
    prefix: str = DEFAULT_PREFIX,
    include_optimizer: bool = True,
    redundancy_removed: bool = False,
    trust_replicas: bool = False,
    equal_slices: bool = False,
    target: Optional[Target] = None,
    lora_alpha: Optional[float] = None,
    lora_base: Optional[Path] = None,
    max_shard_bytes: Optional[int] = None,
    crc: bool = False,
    verify: bool = False,
    durable: bool = True,
    progress: Progress = no_progress,
) -> MergeReport:
    """Merge the shards in ``src_dir/rank_N`` into one file, or cut them for another layout.

    ``strategy`` is a strategy file or the folder of them; None means plain data parallelism,
    where every rank holds everything. ``dst`` is a folder, in which ``rank_0/{prefix}0.{fmt}``
    is written as MindSpore's tools do, or a file name ending in ``.ckpt`` or ``.safetensors``.
    ``step`` None is the last complete one; see ``checkpoint.Reading`` for it and what follows.

    ``target`` (a strategy file, or a layout such as ``dp2,mp4``) writes ``rank_N/{prefix}N.{fmt}``
    for each of its ranks instead. ``max_shard_bytes`` cuts a merged file into several between
    parameters, with an index. ``crc`` writes MindSpore's checksum; ``verify`` reads all back from
    the disk; ``durable`` False does not wait until it is there. ``progress(done, total)`` counts
    bytes.

    Raises CheckpointError when the set is incomplete, corrupt or inconsistent, and Busy when
    another process is writing the same file.
    """
    reading = Reading(
        step="latest" if step is None else str(step),
        include_optimizer=include_optimizer,
        redundancy_removed=redundancy_removed,
        trust_replicas=trust_replicas,
        equal_slices=equal_slices,
        lora_alpha=lora_alpha,
        lora_base=lora_base,
    )
    name = _Name(dst, prefix, fmt)
    checkpoint = open_checkpoint(src_dir, strategy, reading)
    texts = checkpoint.texts() if name.fmt == "safetensors" else {}
    notes = checkpoint.notes
    if target is not None:
        layouts = target_strategy(target, checkpoint.tensors)
        cut, dropped = cut_for_target(checkpoint.tensors, layouts)
        outputs = [OutputFile(name.of_rank(r), parts, texts, crc) for r, parts in cut.items()]
        output, notes = dst, (*notes, *dropped)
    else:
        outputs = _merged(name, checkpoint.tensors, texts, crc, max_shard_bytes)
        output = outputs[0].path if len(outputs) == 1 else name.index
    manifest = name.manifest(output)
    write_files(
        outputs,
        checkpoint.assembly,
        checkpoint.files,
        adapters=checkpoint.adapters,
        stale=manifest,
        verified=verify,
        durable=durable,
        progress=progress,
    )
    if target is not None:
        save_strategy(layouts, dst / "strategy")
    elif len(outputs) > 1:
        _write_index(name, outputs, durable=durable)
    write_manifest(manifest, checkpoint, outputs, notes, with_digests=verify, durable=durable)
    return MergeReport(
        output,
        tuple(o.path for o in outputs),
        manifest,
        str(checkpoint.shards.selection.step or ""),
        tuple(checkpoint.shards.files),
        len(checkpoint.tensors),
        sum(o.path.stat().st_size for o in outputs),
        notes,
    )


class _Name:
    """Names of the new files."""

    def __init__(self, dst: Path, prefix: str, fmt: str) -> None:
        self._dst = dst
        self._prefix = prefix
        self._one_file = dst.suffix.lstrip(".") in FORMATS
        self.fmt = dst.suffix.lstrip(".") if self._one_file else fmt
        if self.fmt not in FORMATS:
            raise CheckpointError(f"no format {fmt!r}", hint=f"one of {', '.join(FORMATS)}")
        if not prefix or "/" in prefix or not prefix.isprintable() or prefix.startswith("."):
            raise CheckpointError(f"{prefix!r} is no prefix of a file name")

    @property
    def merged(self) -> Path:
        return self._dst if self._one_file else self.of_rank(0)

    @property
    def index(self) -> Path:
        return self.merged.with_name(f"{self.merged.name}.index.json")

    def of_rank(self, rank: int) -> Path:
        if self._one_file:
            raise CheckpointError(
                f"{self._dst} is a file name, but each rank needs a file", hint="name a folder"
            )
        return self._dst / f"rank_{rank}" / f"{self._prefix}{rank}.{self.fmt}"

    def part(self, number: int, count: int) -> Path:
        stem = f"{self.merged.stem}-{number:05d}-of-{count:05d}"
        return self.merged.with_name(f"{stem}.{self.fmt}")

    def manifest(self, output: Path) -> Path:
        if output == self._dst and not self._one_file:
            return self._dst / f"{self._prefix}manifest.json"
        return manifest_path(self.merged)


def _merged(
    name: _Name,
    tensors: Sequence[WholeTensor],
    texts: Mapping[str, str],
    crc: bool,
    most: Optional[int],
) -> List[OutputFile]:
    groups: List[List[WholeTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if most is not None and groups[-1] and filled + tensor.nbytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return [
        OutputFile(
            name.merged if len(groups) == 1 else name.part(number, len(groups)),
            tuple((tensor, whole(tensor.shape)) for tensor in group),
            texts if number == 1 else {},
            crc,
        )
        for number, group in enumerate(groups, 1)
    ]


def _write_index(name: _Name, outputs: Sequence[OutputFile], *, durable: bool) -> None:
    """Which file holds which parameter, in the form of Hugging Face's tools; MindSpore's
    load_distributed_checkpoint reads the same under a name of its own."""
    document = {
        "metadata": {"total_size": sum(t.nbytes for o in outputs for t, _ in o.parts)},
        "weight_map": {t.name: output.path.name for output in outputs for t, _ in output.parts},
    }
    data = json.dumps(document, indent=1).encode()
    if name.fmt == "safetensors":
        write_small(name.index.with_name("param_name_map.json"), data, durable=durable)
    write_small(name.index, data, durable=durable)


def manifest_path(merged: Path) -> Path:
    """Of a merged file: where its manifest lies."""
    return merged.with_name(f"{merged.name}.manifest.json")


def write_manifest(
    path: Path,
    checkpoint: Checkpoint,
    outputs: Sequence[OutputFile],
    notes: Sequence[str],
    *,
    with_digests: bool,
    durable: bool = True,
    **more: object,
) -> None:
    """Write what new files were made of: step, sources with their checksums, tool version.

    ``with_digests`` computes those checksums that are not known yet.
    """
    shards = checkpoint.shards
    unknown = [Path(f.path) for f in shards.selection.files.values() if not f.sha256]
    digests: Dict[Path, str] = {}
    if with_digests:
        digests = sha256_of_all([*unknown, *(output.path for output in outputs)])
    sources: List[Mapping[str, object]] = [
        {
            "rank": rank,
            "file": file.path,
            "size": shards.files[rank].size,
            "sha256": file.sha256 or digests.get(Path(file.path), ""),
            "crc32": "" if (crc := shards.files[rank].crc) is None else f"{crc:08x}",
        }
        for rank, file in shards.selection.files.items()
    ]
    written = [
        {
            "file": str(output.path.relative_to(path.parent)),
            "size": output.path.stat().st_size,
            "sha256": digests.get(output.path, ""),
        }
        for output in outputs
    ]
    document: Dict[str, object] = {
        "schema": 1,
        "tool": f"glm2-orch {__version__}",
        "step": str(shards.selection.step or ""),
        "world_size": len(shards.ranks),
        "tensors": len(checkpoint.tensors),
        "files": written,
        "verified": with_digests,
        "strategy": list(shards.strategy.sources) if shards.strategy else [],
        "sources": sources,
        "lora": sorted(checkpoint.adapters),
        "notes": list(notes),
        **more,
    }
    write_small(path, json.dumps(document, indent=1).encode(), durable=durable)
