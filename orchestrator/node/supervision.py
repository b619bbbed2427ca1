"""The supervisor in the background: starts the processes of a run, waits, and ends them all.

Its life: armed → running → ending → finished. It never outlives its ranks and they never outlive
it: it adopts their orphans (child subreaper), and a rank is killed by the kernel when the
supervisor dies (parent-death signal).

Ending, whatever the reason: SIGTERM to the main process of each rank and service, so that a rank
may finish its step and save, and to everything whose main process is already gone; after the
grace SIGKILL to all, whole trees. A rank's helpers get no SIGTERM while it still saves.
"""

from __future__ import annotations

import os
import select
import time

from . import control, processes
from .failure import NodeError
from .folder import Json, RunFolder, overwrite_json, replace_json
from .journal import Journal
from .light import signal, socket

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Set, Tuple

    from .children import Child
    from .leases import Lock
    from .processes import Process
    from .shared_memory import Notes
    from .spec import ProcessSpec, Spec

KILL_PATIENCE_S = 10.0
"""How long SIGKILL is repeated before a process is reported as left (stuck in the kernel)."""
FLUSH_PATIENCE_S = 10.0
"""How long a finished supervisor waits for room on the disk to write its last events."""

_SCAN_EVERY_S = 0.5
_KILL_EVERY_S = 0.05
_NOTE_EVERY_S = 10.0


class Supervision:
    """One run on one host. All methods are called from the main thread: the parent-death signal
    of the ranks belongs to the thread that created them."""

    def __init__(self, folder: RunFolder, spec: Spec, leases: List[Lock]) -> None:
        self.folder = folder
        self.spec = spec
        self.leases = leases
        self.journal = Journal(folder.journal)
        self.children: List[Child] = []
        self.state = "armed"
        self.started = False
        self.first_failure: Optional[Json] = None
        self.failed: List[str] = []
        self.cancelled = False
        self.outcome: Optional[str] = None
        self._signal: Optional[int] = None
        self._start_by = 0.0
        self._beat_at = 0.0
        self._linger_until: Optional[float] = None
        self._kill_at = 0.0
        self._scan_at = 0.0
        self._sent: Set[Tuple[int, int, int]] = set()
        """What was signalled: pid, start time, signal."""
        self._spared: Set[int] = set()
        self._memory: Optional[Notes] = None
        self._note_at = 0.0
        self._unwritten: Dict[str, Json] = {}
        self._problem = ""

    def arm(self, start_timeout: float, identity: Json) -> Json:
        """Say in the journal that we are ready; returns the answer of the command ``arm``."""
        self._start_by = time.monotonic() + start_timeout
        self.journal.append("armed", **identity)
        self._beat(time.monotonic())
        return dict(identity, armed=True)

    def run(self, listener: socket.socket) -> None:
        """Until everything has ended. Reacts at once to signals, dead children and requests."""
        waker = self._wake_on_signals()
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(waker, select.POLLIN)
        while self.outcome is None:
            for descriptor, _ in poll.poll(1000.0 * self._pause(time.monotonic())):
                if descriptor == waker:
                    os.read(waker, 4096)
                else:
                    control.serve(listener, self._answer)
            self._advance(time.monotonic())
        self._beat(time.monotonic())
        patience = time.monotonic() + FLUSH_PATIENCE_S
        while not self._flush() and time.monotonic() < patience:
            time.sleep(0.2)
        self.journal.sync()

    def abort(self, reason: str) -> None:
        """Our own failure: kill everything now, and say so as well as we can."""
        self.journal.append("stopping", reason=reason, by="supervisor")
        left = self._members()
        until = time.monotonic() + KILL_PATIENCE_S
        while left and time.monotonic() < until:
            for process in left:
                self._signal_process(process, signal.SIGKILL)
            time.sleep(_KILL_EVERY_S)
            self._reap()
            left = self._members()
        self._finish("failed", left)

    # What is asked of us

    def _answer(self, request: Json, caller: int) -> Json:
        if request.get("command") == "start":
            if self.state == "armed":
                self._start()
            if self.started:
                return {"started": True}
            return _refusal("host-not-ready", "the supervisor is ending and was never started")
        if request.get("command") == "stop":
            grace = request.get("grace", self.spec.grace_s)
            if not isinstance(grace, (int, float)):
                return _refusal("usage", f"grace: {grace!r} is not a number")
            reason = str(request.get("reason", ""))
            # The caller may be a shell with the environment of a rank, and must live to read us.
            table = processes.table()
            chain = processes.ancestors(caller, table)
            self._spared |= {caller} if os.getpid() in chain else chain
            self._cancel(reason, f"stop (pid {caller})", grace)
            return {"stopping": True, "grace_s": max(0.0, self._kill_at - time.monotonic())}
        return _refusal("usage", f"unknown request {request!r}")

    def _cancel(self, reason: str, by: str, grace: float) -> None:
        if any(c.running for c in self.children if c.spec.rank is not None) or not self.children:
            self.cancelled = True
        self._end(reason, by, grace)

    # Starting

    def _start(self) -> None:
        from .children import spawn  # here, because of light.py
        from .shared_memory import Notes

        self._memory = Notes(self.folder, since=time.time())
        self.started = True
        self.state = "running"
        self.journal.append("started", subreaper=processes.become_subreaper())
        for spec in self.spec.processes:
            try:
                os.makedirs(self.folder.process(spec.name), mode=0o700, exist_ok=True)
                child = spawn(self.folder, self.spec.run_id, spec, self.leases)
            except OSError as error:
                self._not_started(spec, error)
                return
            self.children.append(child)
            self.journal.append(
                "process_started",
                name=spec.name,
                rank=spec.rank,
                pid=child.popen.pid,
                start_ticks=child.start_ticks,
            )

    def _not_started(self, spec: ProcessSpec, error: Exception) -> None:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        self._record_exit(spec, code, None, collateral=False, error=str(error))
        self._end(f"{spec.name} could not be started: {error}", "supervisor", self.spec.grace_s)

    # Every turn of the loop

    def _advance(self, now: float) -> None:
        self._reap()
        if self._signal is not None:
            name = processes.signal_name(self._signal)
            self._signal = None
            self._cancel(f"the supervisor received {name}", "signal", self.spec.grace_s)
        if self.state == "armed" and now >= self._start_by:
            self._cancel("not started in time", "supervisor", self.spec.grace_s)
        if self.state == "running":
            self._look_for_end(now)
        if self.state == "ending" and now >= self._scan_at:
            self._press(now)
        if now >= self._beat_at and self.outcome is None:
            self._beat(now)

    def _pause(self, now: float) -> float:
        """Seconds until something is due."""
        due = [self._beat_at]
        if self.state == "armed":
            due.append(self._start_by)
        if self.state == "ending":
            due.append(self._scan_at)
        if self._linger_until is not None and self.state == "running":
            due.append(self._linger_until)
        return max(0.0, min(due) - now)

    def _reap(self) -> None:
        """Wait for all children that have ended: our own, and adopted orphans."""
        by_pid = {child.popen.pid: child for child in self.children if child.running}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._scan_at = 0.0  # whoever it left behind is looked for now
            if pid in by_pid:
                self._ended(by_pid[pid], status)

    def _ended(self, child: Child, status: int) -> None:
        ranks_run = any(c.running for c in self.children if c.spec.rank is not None)
        signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        child.code = os.WEXITSTATUS(status) if signum is None else 128 + signum
        child.popen.returncode = child.code if signum is None else -signum
        name = None if signum is None else processes.signal_name(signum)
        # A service that fails after the last rank has ended does no harm.
        collateral = child.signalled or (child.code != 0 and not ranks_run)
        failed = child.code != 0 and not collateral
        self._record_exit(child.spec, child.code, name, collateral, failed=failed)

    def _record_exit(
        self,
        spec: ProcessSpec,
        code: int,
        signal_name: Optional[str],
        collateral: bool,
        failed: bool = True,
        error: str = "",
    ) -> None:
        facts: Json = {
            "name": spec.name,
            "rank": spec.rank,
            "code": code,
            "signal": signal_name,
            "collateral": collateral,
        }
        if error:
            facts["error"] = error
        entry = self.journal.append("process_exited", **facts)
        self._unwritten[self.folder.exit(spec.name)] = dict(facts, schema=1, wall=entry["wall"])
        self._flush()
        if failed:
            self.failed.append(spec.name)
            self.first_failure = self.first_failure or dict(
                facts, wall=entry["wall"], mono=entry["mono"]
            )

    def _look_for_end(self, now: float) -> None:
        if self.first_failure is not None:
            self._end(_sentence(self.first_failure), "supervisor", self.spec.grace_s)
            return
        if any(child.running for child in self.children if child.spec.rank is not None):
            return
        if self._linger_until is None:
            self._linger_until = now + self.spec.linger_s
        if now >= self._linger_until or not any(child.running for child in self.children):
            self._begin_ending(self.spec.grace_s)

    # Ending

    def _end(self, reason: str, by: str, grace: float) -> None:
        self.journal.append("stopping", reason=reason, by=by)
        self._begin_ending(grace)

    def _begin_ending(self, grace: float) -> None:
        """A second call can only shorten the grace."""
        self._note_memory()
        kill_at = time.monotonic() + grace
        self._kill_at = min(self._kill_at, kill_at) if self.state == "ending" else kill_at
        self._scan_at = 0.0
        self.state = "ending"

    def _press(self, now: float) -> None:
        """Signal what is due; finish when nothing is left."""
        left = self._members()
        unreaped = any(child.running for child in self.children)
        if not left and not unreaped:
            self._finish(self._decide(), [])
        elif now < self._kill_at:
            needed = self._needed_by_ranks()
            for process in processes.tops(left):
                if process.pid in needed:
                    continue
                if (process.pid, process.start_ticks, signal.SIGTERM) not in self._sent:
                    self._signal_process(process, signal.SIGTERM)
                    processes.send(process, signal.SIGCONT)  # a stopped process would not see it
            self._scan_at = min(now + _SCAN_EVERY_S, self._kill_at)
        elif now < self._kill_at + KILL_PATIENCE_S:
            for process in left:
                self._signal_process(process, signal.SIGKILL)
            self._scan_at = now + _KILL_EVERY_S
        else:
            self._finish(self._decide(), left)

    def _needed_by_ranks(self) -> Set[int]:
        """Services, while a rank runs: ranks that save a checkpoint together still talk through
        MindSpore's scheduler. They are asked to end after the ranks."""
        running = [child for child in self.children if child.running]
        if all(child.spec.rank is None for child in running):
            return set()
        return {child.popen.pid for child in running if child.spec.rank is None}

    def _members(self) -> List[Process]:
        me = os.getpid()
        return processes.members(self.spec.run_id, self.folder.path, me, self._spared)

    def _signal_process(self, process: Process, signum: int) -> None:
        """Signal it; the journal says so once, however often it takes."""
        if not processes.send(process, signum):
            return
        child = next((c for c in self.children if c.popen.pid == process.pid and c.running), None)
        if child is not None:
            child.signalled = True
        if (process.pid, process.start_ticks, signum) not in self._sent:
            self._sent.add((process.pid, process.start_ticks, signum))
            self.journal.append(
                "killed",
                name=child.spec.name if child else None,
                pid=process.pid,
                command=process.name,
                signal=processes.signal_name(signum),
            )

    def _decide(self) -> str:
        if self.first_failure is not None:
            return "failed"
        return "cancelled" if self.cancelled else "succeeded"

    def _finish(self, outcome: str, left: List[Process]) -> None:
        self.outcome = outcome
        self.state = "finished"
        self.journal.append(
            "finished",
            outcome=outcome,
            first_failure=self.first_failure,
            ranks=sum(1 for process in self.spec.processes if process.rank is not None),
            failed=self.failed,
            left=[{"pid": process.pid, "command": process.name} for process in left],
        )

    # Files

    def _flush(self) -> bool:
        """Try again what could not be written; True when everything is on disk."""
        self._problem = ""
        for path, content in list(self._unwritten.items()):
            try:
                replace_json(path, content)
                del self._unwritten[path]
            except OSError as error:
                self._problem = f"{path}: {error.strerror}"
        return self.journal.flush() and not self._unwritten

    def _beat(self, now: float) -> None:
        self._beat_at = now + self.spec.heartbeat_s
        if now >= self._note_at and self.state == "running":
            self._note_at = now + _NOTE_EVERY_S
            self._note_memory()
        self._flush()
        beat: Json = {
            "schema": 1,
            "wall": time.time(),
            "mono": time.monotonic(),
            "pid": os.getpid(),
            "state": self.state,
            "outcome": self.outcome,
            "seq": self.journal.seq,
            "running": [child.spec.name for child in self.children if child.running],
            "problem": self.journal.problem or self._problem,
        }
        try:
            replace_json(self.folder.heartbeat, beat)
        except OSError as error:
            beat["problem"] = beat["problem"] or f"heartbeat.json: {error.strerror}"
            try:
                overwrite_json(self.folder.heartbeat, beat)
            except OSError:  # its age tells
                return

    def _note_memory(self) -> None:
        if self._memory is None:  # nothing was started
            return
        try:
            self._memory.take(process.pid for process in self._members())
        except OSError as error:
            self._problem = f"shared_memory.json: {error.strerror}"

    def _wake_on_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        return reader

    def _on_signal(self, signum: int, frame: object) -> None:
        self._signal = signum


def _refusal(code: str, message: str) -> Json:
    return NodeError(code, message).to_json()


def _sentence(failure: Json) -> str:
    if failure["signal"]:
        return f"{failure['name']} was ended by {failure['signal']}"
    return f"{failure['name']} ended with exit status {failure['code']}"
