"""Collect the checkpoint of one complete step from all hosts of a run.

1. Every host lists its files and strategy files (``node/catalogue.py``, sent to its Python).
2. The last complete step is chosen (``checkpoints/catalogue.py``), or the one asked for.
3. All hosts at once send their files of it, while they compute the SHA-256 of each; a cut
   transfer goes on where it stopped, in this attempt or a later one.
4. When every file has arrived with the right digest, all move into place, and the step is
   marked complete (``checkpoints/collected.py``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import shutil
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.catalogue import (
    CheckpointFile,
    Selection,
    check_world,
    checkpoint_file,
    select,
)
from orchestrator.checkpoints.checksum import sha256_of
from orchestrator.checkpoints.collected import CollectedFile, CollectedFolder
from orchestrator.checkpoints.strategy import read_strategies
from orchestrator.errors import CheckpointError, HostNotReady, OrchError, TransportError, one_error
from orchestrator.planning.plan import Plan
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import fan_out

Progress = Callable[[int, int], None]
"""Called with bytes arrived and bytes in all, one call at a time, from any thread."""

_LOOK_EVERY_S = 0.25

ATTEMPTS = 3
"""Times that a cut transfer is taken up again before the command gives up."""


@dataclass(frozen=True)
class Source:
    """One host's part of a run: its ranks write below ``run_dir``."""

    transport: Transport
    python: str
    run_dir: str
    ranks: Tuple[int, ...]

    @property
    def name(self) -> str:
        return self.transport.name


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


@dataclass(frozen=True)
class _Listing:
    files: Tuple[CheckpointFile, ...]
    changed: Mapping[Tuple[int, str], int]
    """Time of change, by rank and path."""
    strategies: Mapping[str, bytes]


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


def _list_all(sources: Sequence[Source]) -> Tuple[Dict[str, _Listing], List[OrchError]]:
    outcomes = fan_out(sources, _list)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) == len(outcomes) or any(not isinstance(e, TransportError) for e in errors):
        raise one_error("cannot list the checkpoints of all hosts", errors)
    return {o.host: o.value for o in outcomes if o.value is not None}, errors


def _list(source: Source) -> _Listing:
    ranks = ",".join(str(rank) for rank in source.ranks)
    answers = _ask(source, "list", "--run-dir", source.run_dir, "--ranks", ranks)
    try:
        (answer,) = answers
        files: List[CheckpointFile] = []
        changed: Dict[Tuple[int, str], int] = {}
        for entry in answer["files"]:
            rank, name = entry["rank"], _safe_name(source, entry["name"])
            if rank not in source.ranks:
                raise ValueError(f"a file of rank {rank}, which does not run there")
            path = f"{source.run_dir}/output/checkpoint/rank_{rank}/{name}"
            file = checkpoint_file(rank, path, size=int(entry["size"]), host=source.name)
            if file is not None:
                files.append(file)
                changed[rank, path] = int(entry["mtime_ns"])
        strategies = {
            _safe_name(source, entry["name"]): base64.b64decode(answer["contents"][entry["sha256"]])
            for entry in answer["strategy"]
        }
        for entry in answer["strategy"]:
            if hashlib.sha256(strategies[entry["name"]]).hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['name']} does not have its digest")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _bad_answer(source, str(error)) from error
    return _Listing(tuple(files), changed, strategies)


def _ask(source: Source, *arguments: str) -> List[Dict[str, Any]]:
    """Run the catalogue on the host; its answer, an object a line."""
    program = package_files("orchestrator.node").joinpath("catalogue.py").read_bytes()
    argv = [source.python, "-", *arguments]
    # Hashing takes as long as it takes; a dead connection is noticed by the transport itself.
    timeout = 120.0 if arguments[0] == "list" else None
    completed = source.transport.run(argv, stdin=program, timeout=timeout)
    if completed.exit_status in (126, 127):
        raise HostNotReady(
            f"{source.python} cannot be run",
            hint="set `python` of the host in the inventory",
            host=source.name,
        )
    try:
        answers = [json.loads(line) for line in completed.stdout.splitlines()]
        if answers and "error" in answers[-1]:
            raise HostNotReady(str(answers[-1]["error"]["message"]), host=source.name)
        if completed.exit_status != 0 or not all(isinstance(a, dict) for a in answers):
            raise ValueError(f"it ended with status {completed.exit_status}")
    except (ValueError, KeyError, TypeError) as error:
        tail = completed.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _bad_answer(source, tail[-1] if tail else str(error)) from error
    return answers


def _bad_answer(source: Source, why: str) -> HostNotReady:
    return HostNotReady(
        f"the catalogue of checkpoints cannot be read: {why:.300}",
        hint=f"try `{source.python} --version` on the host; Python 3.7 or newer is needed",
        host=source.name,
    )


def _safe_name(source: Source, name: object) -> str:
    """A file name from a host, if it can only ever mean a file in the folder meant for it."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or not name.isprintable()
        or len(name.encode("utf-8", "surrogatepass")) > 200
    ):
        raise CheckpointError(
            f"the host lists a file named {name!r:.80}, which is refused",
            hint="rename or remove it on the host",
            host=source.name,
        )
    return name


def _strategies(listings: Mapping[str, _Listing]) -> Dict[str, bytes]:
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
    listings: Mapping[str, _Listing],
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


Digests = Mapping[str, Mapping[str, Any]]
"""What the host says of each file (``rank_N/name``): size, mtime_ns, sha256."""

Wanted = Sequence[Tuple[CheckpointFile, _Listing]]


def _same(here: Sequence[CollectedFile], wanted: Wanted) -> bool:
    """Whether the hosts still hold what was collected."""
    mine = {(file.rank, file.name, file.size, file.source_mtime_ns) for file in here}
    theirs = {
        (file.rank, _name(file), file.size, listing.changed[file.rank, file.path])
        for file, listing in wanted
    }
    return mine == theirs


def _name(file: CheckpointFile) -> str:
    return file.path.rsplit("/", 1)[-1]


def _check_room(folder: CollectedFolder, wanted: Wanted) -> None:
    nbytes = sum(file.size for file, _ in wanted)
    arrived = sum(_size(folder.part(file.rank, _name(file))) for file, _ in wanted)
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

    parts = [folder.part(file.rank, _name(file)) for file, _ in wanted]
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
    digests = _in_background(lambda: _digests(source, files))
    for file in files:
        part = folder.part(file.rank, _name(file))
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_bytes(source, file, part)
        yield _verified(source, file, part, digests)


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


def _digests(source: Source, files: Sequence[CheckpointFile]) -> Digests:
    names = [f"rank_{file.rank}/{_name(file)}" for file in files]
    answers = _ask(source, "hash", "--run-dir", source.run_dir, *names)
    found = {str(answer.get("file")): answer for answer in answers}
    for name in names:
        entry = found.get(name, {})
        if not isinstance(entry.get("sha256"), str) or not isinstance(entry.get("mtime_ns"), int):
            raise _bad_answer(source, f"no digest of {name}")
    return found


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
    digests: Future[Digests],
) -> CollectedFile:
    name = f"rank_{file.rank}/{_name(file)}"
    for again in (False, True):
        found = sha256_of(part)
        entry = digests.result()[name]
        if found == entry["sha256"]:
            return CollectedFile(
                file.rank, _name(file), file.size, found, source.name, entry["mtime_ns"]
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
