"""Collect the checkpoint of one complete step from all hosts of a run.

1. Every host lists its files and strategy files (``node/catalogue.py``, sent to its Python).
2. The last complete step is chosen, or the one asked for, and of files that hold the same slices
   the nearest (``engine/choice.py``).
3. All hosts at once send these files (``engine/receive.py``), with their digests, and are
   checked as they arrive; a cut transfer goes on where it stopped, in this attempt or a later
   one. Meanwhile the hosts hash the copies that stay: one that differs is no copy, and travels
   too.
4. When every file has arrived with the right digest, all move into place, and the step is
   marked complete (``checkpoints/collected.py``).
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.catalogue import CheckpointFile, some_ranks
from orchestrator.checkpoints.collected import CollectedFile, CollectedFolder
from orchestrator.checkpoints.workers import no_progress
from orchestrator.engine.catalogue import Source
from orchestrator.engine.choice import Choice, choose
from orchestrator.engine.fetch import digests_in_background, fetch_files
from orchestrator.engine.receive import Meter, Progress
from orchestrator.errors import CheckpointError, HostNotReady
from orchestrator.inventory import Host
from orchestrator.planning.plan import Plan
from orchestrator.transport.base import Streams, Transport
from orchestrator.transport.openssh import find_ssh, ssh_streams
from orchestrator.transport.pace import Pace


@dataclass(frozen=True)
class CollectReport:
    """What is here now. ``nbytes`` is its size; ``fetched`` counts the files that came now, 0
    when all were here already; ``removed`` are older steps that had to go."""

    folder: Path
    checkpoint: Path
    strategy: Optional[Path]
    """Folder of the strategy files; None when the run wrote none."""
    step: str
    ranks: Tuple[int, ...]
    files: Tuple[CollectedFile, ...]
    fetched: int
    nbytes: int
    removed: Tuple[str, ...]
    notes: Tuple[str, ...]


@contextmanager
def sources_of(
    plan: Plan,
    transports: Mapping[str, Transport],
    hosts: Sequence[Host],
    transfer: str = "auto",
) -> Iterator[List[Source]]:
    """The hosts of a plan that run ranks, ready to send.

    ``transfer`` says what carries the files over SSH: ``ssh`` (the system's), ``paramiko`` (ours)
    or ``auto``: the first where it is installed, the other where it is not or cannot connect.
    Raises HostNotReady when ``ssh`` is asked for and there is none.
    """
    program = None if transfer == "paramiko" else find_ssh()
    if transfer == "ssh" and program is None:
        raise HostNotReady(
            "there is no program ssh on this machine", hint="install it, or use --transfer auto"
        )
    with ExitStack() as stack:
        fast: Mapping[str, Streams] = {}
        if program is not None:
            fast = stack.enter_context(ssh_streams(program, hosts))
        settings = {host.name: host for host in hosts}
        found: List[Source] = []
        for planned in plan.hosts:
            ranks = tuple(p.rank for p in planned.processes if p.rank is not None)
            if not ranks:
                continue
            host = settings[planned.host]
            own = transports[host.name].stream
            ways = (own,) if host.name not in fast else (fast[host.name], own)
            shared = host.shared_workdir
            found.append(
                Source(
                    transports[host.name],
                    planned.python,
                    planned.run_dir,
                    ranks,
                    ways[:1] if transfer == "ssh" else ways,
                    host.connection == "local",
                    None if shared is None else shared + planned.run_dir[len(host.workdir) :],
                )
            )
        yield found


def collect(
    sources: Sequence[Source],
    *,
    step: str = "latest",
    out: Path,
    everything: bool = False,
    trust_replicas: bool = False,
    keep: Optional[int] = None,
    with_merge: bool = False,
    pace: Optional[Pace] = None,
    progress: Progress = no_progress,
) -> CollectReport:
    """Fetch one complete step into ``out``; see ``checkpoints/collected.py`` for what is there
    afterwards. ``step`` is ``latest`` (the last complete one), a step, or ``epoch_step``.

    Of files that hold the same slices one travels, unless ``everything`` is asked for; with
    ``trust_replicas`` the others are not even compared. ``keep`` removes all but so many of the
    complete steps in ``out``, never the one collected. ``with_merge`` asks for room for a merged
    file too. A step that is already here, complete and unchanged on the hosts, is recognised.

    Raises CheckpointError when no step is complete, a file does not have its digest or there is
    no room; the errors of hosts otherwise.
    """
    folder = CollectedFolder(out)
    with folder.locked():
        choice = choose(sources, step=step, everything=everything, preferred=folder.ranks())
        here = _unchanged_here(folder, choice)
        wanted = [file for file in choice.files if file.rank not in here]
        notes = choice.notes
        placed = folder.complete(choice.step) if not wanted else None
        fetched = 0
        if placed is None:
            _check_room(folder, sources, wanted, choice, with_merge)
            arrived = _fetch(sources, folder, choice, wanted, here, trust_replicas, pace, progress)
            fetched = len(arrived)
            different = sorted({file.rank for file in arrived} - {file.rank for file in wanted})
            if different:
                notes = (*notes, f"{some_ranks(different)}: not equal to the copies, came too")
            files = sorted([*here.values(), *arrived], key=lambda file: file.rank)
            placed = folder.install(choice.step, files, choice.strategies, notes)
        removed = folder.keep(keep, choice.step) if keep is not None else ()
    return CollectReport(
        folder.root,
        folder.checkpoint,
        folder.strategy if choice.strategies else None,
        choice.step,
        tuple(file.rank for file in placed),
        placed,
        fetched,
        sum(file.size for file in placed),
        removed,
        notes,
    )


def _unchanged_here(folder: CollectedFolder, choice: Choice) -> Dict[int, CollectedFile]:
    """Files of the step that were collected before and are still as they were, by rank: all of
    them, or where a host has saved the step anew, those that it has not."""
    theirs = {
        file.rank: (file.name, file.size, choice.changed[file.rank])
        for file in (*choice.files, *(copy for group in choice.copies.values() for copy in group))
    }
    earlier = folder.collected(choice.step)
    same = {
        file.rank
        for file in earlier
        if theirs.get(file.rank) == (file.name, file.size, file.source_mtime_ns)
    }
    saved_anew = any(file.rank in theirs and file.rank not in same for file in earlier)
    intact = folder.intact(choice.step)
    return {file.rank: file for file in intact if file.rank in same or not saved_anew}


def _check_room(
    folder: CollectedFolder,
    sources: Sequence[Source],
    wanted: Sequence[CheckpointFile],
    choice: Choice,
    with_merge: bool,
) -> None:
    shared = {source.name for source in sources if source.shared_dir is not None}
    copied = [file for file in wanted if file.host not in shared]
    arrived = sum(folder.arrived(file.rank, file.name) for file in copied)
    needed = sum(file.size for file in copied) - arrived
    merged = sum(file.size for file in choice.files) if with_merge else 0
    free = shutil.disk_usage(folder.root).free
    if free < needed + merged:
        also = f" and the merged file about {merged}" if merged else ""
        raise CheckpointError(
            f"{folder.root} has {free} bytes free, the checkpoint needs {needed}{also}",
            hint="free some space, or choose another folder with --out"
            + ("; --stream merges without a copy of the shards" if merged else ""),
        )


def _fetch(
    sources: Sequence[Source],
    folder: CollectedFolder,
    choice: Choice,
    wanted: Sequence[CheckpointFile],
    here: Mapping[int, CollectedFile],
    trust_replicas: bool,
    pace: Optional[Pace],
    progress: Progress,
) -> List[CollectedFile]:
    """The wanted files, and copies of needed files that turn out to be none."""
    copies = [copy for group in choice.copies.values() for copy in group]
    promised = None
    if copies and not trust_replicas:
        promised = digests_in_background(sources, copies)
    meter = Meter(sum(file.size for file in wanted), progress, pace)
    arrived = fetch_files(sources, folder, wanted, choice.changed, meter)
    if promised is not None:
        digest = {**here, **{file.rank: file for file in arrived}}
        different = [
            copy
            for rank, group in choice.copies.items()
            for copy in group
            if copy.rank not in here and promised()[copy.rank] != digest[rank].sha256
        ]
        meter.expect(sum(file.size for file in different))
        arrived += fetch_files(sources, folder, different, choice.changed, meter)
    meter.end()
    return arrived
