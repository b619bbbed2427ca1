"""One run of a schedule: never two at once, logged to a file, journaled."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from orchestrator.errors import Busy, HostNotReady, Terminated
from orchestrator.runs import lease
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.state import read_state
from orchestrator.schedules.record import last_run
from orchestrator.schedules.store import Schedule, SchedulePaths

KEPT_LOGS = 30


def run_schedule(
    schedule: Schedule,
    paths: SchedulePaths,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.time,
) -> int:
    """Run the schedule's command now and wait for its end; its exit status.

    Raises Busy, after journaling that this time was skipped, while an earlier run of it goes on.
    """
    journal = Journal(paths.journal, clock)
    with _alone(schedule, paths, journal):
        moment = clock()
        stamp = datetime.fromtimestamp(moment).strftime("%Y%m%d-%H%M%S")
        run_id = f"{schedule.name}-{stamp}" if schedule.arguments[0] == "launch" else None
        log = paths.logs / f"{stamp}.log"
        say(f"schedule {schedule.name}: output goes to {log}")
        journal.append("started", pid=os.getpid(), run_id=run_id, log=log.name)
        status = _execute(schedule, _words(schedule, run_id), log, journal, run_id)
        journal.append("ended", exit_status=status, run_id=run_id)
        for old in sorted(paths.logs.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink()
    return status


@contextmanager
def _alone(schedule: Schedule, paths: SchedulePaths, journal: Journal) -> Iterator[None]:
    """The right to run, given back at the end; otherwise the time is journaled as skipped."""
    try:
        held = lease.acquire(paths.lock, "schedule run")
    except Busy:
        raise _skipped(schedule, journal, "its last run has not ended") from None
    try:
        going = _going_on(schedule, journal)
        if going is not None:
            raise _skipped(schedule, journal, f"run {going} goes on")
        yield
    finally:
        held.release()


def _going_on(schedule: Schedule, journal: Journal) -> Optional[str]:
    """The last run when it was left to a controller in the background and has not ended.

    One that nobody watches does not count: it may have ended long ago. Where it has not, its
    devices are still leased, and the launch says so.
    """
    last = last_run(journal.events())
    if last is None or last.run_id is None:
        return None
    paths = RunPaths(Path(schedule.home) / "runs" / last.run_id)
    if not paths.journal.exists():
        return None
    state = read_state(paths)
    return None if state.status.is_terminal or state.unwatched else last.run_id


def _skipped(schedule: Schedule, journal: Journal, why: str) -> Busy:
    journal.append("skipped", reason=why)
    return Busy(
        f"schedule {schedule.name} is skipped this time: {why}",
        hint="see: glm2-orch schedule list; glm2-orch status",
    )


def _words(schedule: Schedule, run_id: Optional[str]) -> Sequence[str]:
    command, *rest = schedule.arguments
    named = [] if run_id is None else ["--run-id", run_id]
    return [schedule.python, "-m", "orchestrator.cli.main", command, *named, *rest]


def _execute(
    schedule: Schedule, words: Sequence[str], log: Path, journal: Journal, run_id: Optional[str]
) -> int:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            cwd=schedule.folder,
            env={**os.environ, **schedule.environment, "GLM2_ORCH_HOME": schedule.home},
        )
    except OSError as error:
        journal.append("ended", exit_status=HostNotReady.exit_status, run_id=run_id)
        raise HostNotReady(
            f"schedule {schedule.name} cannot be started in {schedule.folder}: {error.strerror}",
            hint="its folder or Python is gone; remove the schedule and add it again",
        ) from error
    finally:
        os.close(fd)
    try:
        return _shell_status(process.wait())
    except (KeyboardInterrupt, Terminated):
        # The command detaches from its job, as at a terminal.
        process.terminate()
        journal.append("ended", exit_status=_shell_status(process.wait()), run_id=run_id)
        raise


def _shell_status(code: int) -> int:
    """An exit status as a shell shows it: 128 + signal."""
    return code if code >= 0 else 128 - code
