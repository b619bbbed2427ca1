"""The shards of one step on disk: found, chosen and indexed, no content read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.catalogue import (
    CheckpointFile,
    Selection,
    check_world,
    checkpoint_file,
    rank_of_folder,
    select,
)
from orchestrator.checkpoints.checksum import sha256_of
from orchestrator.checkpoints.collected import collected_files
from orchestrator.checkpoints.mindspore_ckpt import index_ckpt
from orchestrator.checkpoints.safetensors_file import index_safetensors
from orchestrator.checkpoints.strategy import Strategy
from orchestrator.checkpoints.tensor import FileIndex, Interned
from orchestrator.errors import CheckpointError


@dataclass(frozen=True)
class ShardSet:
    """The indexed files of one step. ``ranks`` are all ranks of the job, with a file or not."""

    ranks: Tuple[int, ...]
    files: Mapping[int, FileIndex]
    selection: Selection
    strategy: Optional[Strategy]

    def stages(self) -> List[Tuple[int, Sequence[int]]]:
        """``(first rank, ranks)`` of each pipeline stage; without a strategy there is one."""
        if self.strategy is None:
            return [(0, self.ranks)]
        size = self.strategy.stage_ranks
        return [(first, range(first, first + size)) for first in range(0, len(self.ranks), size)]


def open_shards(source: Path, strategy: Optional[Strategy], *, step: str = "latest") -> ShardSet:
    """Index the files of one step below ``source``: a folder with ``rank_N`` folders, or one file.

    Raises CheckpointError when no complete step is there, or a file is broken.
    """
    if source.is_file():
        listing = [CheckpointFile(0, str(source), "", None, source.suffix.lstrip("."))]
    else:
        listing = list_folder(source)
    ranks = check_world((file.rank for file in listing), strategy, str(source))
    selection = select(listing, ranks=ranks, strategy=strategy, step=step)
    selection = replace(selection, files=_with_digests(source, selection.files))
    shared = Interned()
    files = {rank: index_file(Path(file.path), shared) for rank, file in selection.files.items()}
    return ShardSet(ranks, files, selection, strategy)


def list_folder(source: Path) -> List[CheckpointFile]:
    """All checkpoint files in folders ``rank_N`` below ``source``; others are passed over."""
    if not source.is_dir():
        raise CheckpointError(f"no folder or file {source}")
    found: List[CheckpointFile] = []
    for folder in sorted(source.iterdir()):
        rank = rank_of_folder(folder.name)
        if rank is None or not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.is_file():
                file = checkpoint_file(rank, str(path), size=path.stat().st_size)
                if file is not None:
                    found.append(file)
    if not found:
        raise CheckpointError(
            f"{source} has no checkpoint in folders rank_N",
            hint="give the folder output/checkpoint of the run",
        )
    return found


def _with_digests(source: Path, files: Mapping[int, CheckpointFile]) -> Dict[int, CheckpointFile]:
    """Add the SHA-256 that each file had when it was collected, if it was; raise CheckpointError
    for a file that has been changed since."""
    known = collected_files(source.parent) if source.name == "checkpoint" else {}
    found: Dict[int, CheckpointFile] = {}
    for rank, file in files.items():
        path = Path(file.path)
        entry = known.get(path.resolve())
        if entry is not None:
            file = replace(file, sha256=entry.sha256)
            changed = path.stat().st_mtime_ns != entry.mtime_ns or path.stat().st_size != entry.size
            if changed and sha256_of(path) != entry.sha256:
                raise CheckpointError(
                    f"rank {rank}, {path}: expected SHA-256 {entry.sha256} as collected, found "
                    "other content",
                    hint="the file is damaged; collect it again",
                )
        found[rank] = file
    return found


def index_file(path: Path, interned: Optional[Interned] = None) -> FileIndex:
    """Index a checkpoint of either format, told by its extension."""
    if path.suffix == ".safetensors":
        return index_safetensors(path, interned)
    return index_ckpt(path, interned)
