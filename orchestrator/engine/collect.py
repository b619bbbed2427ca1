"""Collect the checkpoint of one complete step from all hosts of a run.

1. Every host lists its files and strategy files (``node/catalogue.py``, sent to its Python).
2. The last complete step is chosen (``checkpoints/catalogue.py``), or the one asked for.
3. All hosts at once send their files of it, while they compute the SHA-256 of each; a cut
   transfer goes on where it stopped, in this attempt or a later one.
4. When every file has arrived with the right digest, all move into place, and the step is
   marked complete (``checkpoints/collected.py``).
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.catalogue import CheckpointFile, Selection, check_world, select
from orchestrator.checkpoints.checksum import sha256_of
from orchestrator.checkpoints.collected import CollectedFile, CollectedFolder
from orchestrator.checkpoints.strategy import read_strategies
from orchestrator.engine.catalogue import Digests, Listing, Source, digests, list_checkpoints
from orchestrator.errors import CheckpointError, OrchError, TransportError, one_error
from orchestrator.planning.plan import Plan
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import fan_out

Progress = Callable[[int, int], None]
"""Called with bytes arrived and bytes in all, one call at a time, from any thread."""

_LOOK_EVERY_S = 0.25

ATTEMPTS = 3
"""Times that a cut transfer is taken up again before the command gives up."""


@dataclass(frozen=True)
class CollectReport:
    """What was collected. ``nbytes`` is its size; ``fetched`` counts the files that travelled
    now, 0 when all were here already."""

    folder: Path
    checkpoint: Path
    strategy: Optional[Path]
    """Folder of the strategy files; None when the run wrote none."""
    step: str
    ranks: Tuple[int, ...]
    files: Tuple[CollectedFile, ...]
    fetched: int
    nbytes: int
    notes: Tuple[str, ...]


def sources_of(plan: Plan, transports: Mapping[str, Transport]) -> List[Source]:
    """The hosts of a plan that run ranks."""
    found: List[Source] = []
    for host in plan.hosts:
        ranks = tuple(process.rank for process in host.processes if process.rank is not None)
        if ranks:
            found.append(Source(transports[host.host], host.python, host.run_dir, ranks))
    return found


def collect(
    sources: Sequence[Source],
    *,
    step: str = "latest",
    out: Path,
    progress: Progress = lambda done, total: None,
) -> CollectReport:
    """Fetch one complete step into ``out``; see ``checkpoints/collected.py`` for what is there
    afterwards. ``step`` is ``latest`` (the last complete one), a step, or ``epoch_step``.

    A step that is already here, complete and unchanged on the hosts, is recognised. Raises
    CheckpointError when no step is complete, a file does not have its digest or there is no
    room; the errors of hosts otherwise.
    """
    folder = CollectedFolder(out)
    with folder.locked():
        listings, failures = _list_all(sources)
        strategies = _strategies(listings)
        try:
            selection = _choose(sources, listings, strategies, step)
        except CheckpointError as error:
            # What an unreachable host holds is unknown: its error is the cause, not the gap.
            if failures:
                raise one_error("cannot list the checkpoints of all hosts", failures) from error
            raise
        notes = (*(str(error) for error in failures), *selection.notes)
        name = str(selection.step)
        wanted = [(file, listings[file.host]) for file in selection.files.values()]
        here = folder.complete(name)
        if here is not None and _same(here, wanted):
            return _report(folder, name, strategies, here, 0, notes)
        _check_room(folder, wanted)
        files = _fetch_all(sources, folder, wanted, progress)
        placed = folder.install(name, files, strategies, notes)
    return _report(folder, name, strategies, placed, len(placed), notes)


def _list_all(sources: Sequence[Source]) -> Tuple[Dict[str, Listing], List[OrchError]]:
    outcomes = fan_out(sources, list_checkpoints)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) == len(outcomes) or any(not isinstance(e, TransportError) for e in errors):
        raise one_error("cannot list the checkpoints of all hosts", errors)
    return {o.host: o.value for o in outcomes if o.value is not None}, errors


def _strategies(listings: Mapping[str, Listing]) -> Dict[str, bytes]:
    """All strategy files by name; the same name on two hosts must be the same file."""
    found: Dict[str, bytes] = {}
    origin: Dict[str, str] = {}
    for host, listing in listings.items():
        for name, content in listing.strategies.items():
            if found.setdefault(name, content) != content:
                raise CheckpointError(
                    f"strategy file {name} of {host} differs from that of {origin[name]}",
                    hint="the hosts hold files of different runs",
                )
            origin.setdefault(name, host)
    return found


def _choose(
    sources: Sequence[Source],
    listings: Mapping[str, Listing],
    strategies: Mapping[str, bytes],
    step: str,
) -> Selection:
    files = [file for listing in listings.values() for file in listing.files]
    ranks: Sequence[int] = sorted(rank for source in sources for rank in source.ranks)
    strategy = read_strategies(strategies, "the hosts' strategy files") if strategies else None
    if strategy is not None:
        if strategy.world_size > len(ranks):
            raise CheckpointError(
                f"the strategy files describe {strategy.world_size} ranks, the run has "
                f"{len(ranks)}",
                hint="the hosts hold strategy files of another run",
            )
        ranks = check_world([file.rank for file in files] or [0], strategy, "the run")
    # A file whose name tells no step cannot be known to belong to the others'.
    numbered = [file for file in files if file.step]
    selection = select(numbered, ranks=ranks, strategy=strategy, step=step)
    if strategy is None and selection.missing:
        # Only a strategy proves that the others hold what these ranks would.
        raise CheckpointError(
            f"step {selection.step}: expected a file of each of {len(ranks)} ranks, found "
            f"none of rank {selection.missing[0]} and no strategy file",
            hint="wait for the next save, or choose another step with --step",
        )
    return selection


Wanted = Sequence[Tuple[CheckpointFile, Listing]]


def _same(here: Sequence[CollectedFile], wanted: Wanted) -> bool:
    """Whether all that the hosts can give has been collected already, perhaps more."""
    mine = {(file.rank, file.name, file.size, file.source_mtime_ns) for file in here}
    theirs = {
        (file.rank, file.name, file.size, listing.changed[file.rank, file.path])
        for file, listing in wanted
    }
    return theirs <= mine


def _check_room(folder: CollectedFolder, wanted: Wanted) -> None:
    nbytes = sum(file.size for file, _ in wanted)
    arrived = sum(_size(folder.part(file.rank, file.name)) for file, _ in wanted)
    free = shutil.disk_usage(folder.root).free
    if free < nbytes - arrived:
        raise CheckpointError(
            f"{folder.root} has {free} bytes free, the checkpoint needs {nbytes - arrived}",
            hint="free some space, or choose another folder with --out",
        )


def _fetch_all(
    sources: Sequence[Source],
    folder: CollectedFolder,
    wanted: Wanted,
    progress: Progress,
) -> List[CollectedFile]:
    """Fetch and verify the wanted files of all hosts at once."""
    files: Dict[str, List[CheckpointFile]] = {}
    for file, _ in wanted:
        files.setdefault(file.host, []).append(file)

    def fetch(source: Source) -> List[CollectedFile]:
        return list(_fetch(source, folder, files[source.name]))

    parts = [folder.part(file.rank, file.name) for file, _ in wanted]
    with _watched(parts, sum(file.size for file, _ in wanted), progress):
        outcomes = fan_out([source for source in sources if source.name in files], fetch)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise one_error(f"{len(errors)} of {len(outcomes)} hosts could not send all", errors)
    return [file for outcome in outcomes for file in outcome.value or ()]


def _fetch(
    source: Source, folder: CollectedFolder, files: Sequence[CheckpointFile]
) -> Iterator[CollectedFile]:
    """Fetch one host's files, one after the other, while the host computes their digests."""
    promised = _in_background(lambda: digests(source, files))
    for file in files:
        part = folder.part(file.rank, file.name)
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_bytes(source, file, part)
        yield _verified(source, file, part, promised)


def _in_background(function: Callable[[], Digests]) -> Future[Digests]:
    """Start ``function`` in a daemon thread, which Ctrl-C need not wait for."""
    future: Future[Digests] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _fetch_bytes(source: Source, file: CheckpointFile, part: Path) -> None:
    """Let ``part`` grow to the file's size, taking a cut transfer up again."""
    for attempt in range(ATTEMPTS):
        have = _size(part)
        if have == file.size and part.exists():
            return
        if have > file.size:
            have = 0  # of a file since replaced
        try:
            source.transport.get(file.path, part, offset=have)
        except TransportError:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        if _size(part) == file.size:
            return
    raise CheckpointError(
        f"rank {file.rank}, {file.path}: expected {file.size} bytes, found {_size(part)}",
        hint="the file changed while it was fetched; collect again",
        host=source.name,
    )


def _verified(
    source: Source,
    file: CheckpointFile,
    part: Path,
    promised: Future[Digests],
) -> CollectedFile:
    name = f"rank_{file.rank}/{file.name}"
    for again in (False, True):
        found = sha256_of(part)
        entry = promised.result()[name]
        if found == entry["sha256"]:
            return CollectedFile(
                file.rank, file.name, file.size, found, source.name, entry["mtime_ns"]
            )
        # Perhaps the part began with an earlier attempt's bytes of a file since replaced.
        part.unlink()
        if not again:
            _fetch_bytes(source, file, part)
    raise CheckpointError(
        f"rank {file.rank}, {file.path}: expected SHA-256 {entry['sha256']}, found {found}",
        hint="the file changed while it was fetched, or the network damages data; collect again",
        host=source.name,
    )


@contextmanager
def _watched(parts: Sequence[Path], total: int, progress: Progress) -> Iterator[None]:
    """Report how far the parts have grown, whatever makes them grow, until the block ends."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S):
            progress(min(sum(_size(part) for part in parts), total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    progress(0, total)
    watcher.start()
    try:
        yield
        stop.set()
        watcher.join()
        progress(total, total)
    finally:
        stop.set()
        watcher.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _report(
    folder: CollectedFolder,
    step: str,
    strategies: Mapping[str, bytes],
    files: Tuple[CollectedFile, ...],
    fetched: int,
    notes: Tuple[str, ...],
) -> CollectReport:
    return CollectReport(
        folder.root,
        folder.checkpoint,
        folder.strategy if strategies else None,
        step,
        tuple(file.rank for file in files),
        files,
        fetched,
        sum(file.size for file in files),
        notes,
    )
