"""Every error that glm2-orch raises on purpose, and the exit status each one ends with.

::

    OrchError
    ├── UsageError               2   the command line is wrong
    ├── SpecError                3   an input file is wrong
    │   ├── InventoryError
    │   ├── JobError
    │   ├── RankTableError
    │   └── PlanError
    ├── HostNotReady             4   a host was reached but cannot run the job
    ├── TransportError           5   a host could not be used over the wire
    │   ├── HostUnreachable          no route, refused, reset, name unknown
    │   ├── HostTimeout              connect, banner, authentication or command took too long
    │   ├── KeyRefused               the server refused our key
    │   └── HostKeyMismatch          the server's key is unknown or changed
    ├── JobFailed                6   a rank failed
    ├── JobHung                  7   no progress, or a time limit passed
    ├── JobCancelled             8   stopped on request
    ├── Busy                     9   devices or run folder held by another run
    │   ├── Fenced                   another controller has taken the run over
    │   └── PortTaken                another run has the port of MindSpore's scheduler
    ├── CheckpointError         10   incomplete, corrupt or inconsistent
    ├── PartialFailure          11   some hosts succeeded, some did not
    └── HostErrors               *   several hosts failed; the status of the gravest of them

Exit status 1 is a bug of ours (any exception outside this tree); 130 and 143 mean that
the command itself was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional, Sequence


@dataclass(frozen=True)
class Location:
    """A place in a text: file name, and 1-based line and column (0: not known)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return (
            f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"
        )


class OrchError(Exception):
    """Base of the tree. ``str(error)`` is one sentence that says what is wrong.

    ``code`` is a stable identifier for scripts, ``hint`` is the next step for a person,
    ``location`` is the place in an input file, ``host`` the inventory name of the host.
    """

    code: ClassVar[str] = "error"
    exit_status: int = 1
    next_step: ClassVar[str] = ""
    """The hint where the place that raises the error knows no better one."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        location: Optional[Location] = None,
        host: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.next_step
        self.location = location
        self.host = host

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location else ""
        who = f"{self.host}: " if self.host else ""
        return f"{where}{who}{self.message}"


class UsageError(OrchError):
    """The command line is wrong."""

    code = "usage"
    exit_status = 2
    next_step = "see the command's --help"


class SpecError(OrchError):
    """An input file (inventory, job configuration, rank table, plan) is wrong."""

    code = "spec"
    exit_status = 3
    next_step = "correct that file, then repeat the command"


class InventoryError(SpecError):
    code = "inventory"


class JobError(SpecError):
    code = "job"


class RankTableError(SpecError):
    code = "rank-table"


class PlanError(SpecError):
    code = "plan"


class HostNotReady(OrchError):
    """A host answered but cannot run the job: no Python, read-only or full workdir, sick device."""

    code = "host-not-ready"
    exit_status = 4
    next_step = "see what is wrong there: glm2-orch preflight --inventory FILE"


class TransportError(OrchError):
    """A host could not be used over the wire. What happened there is unknown, not failed."""

    code = "transport"
    exit_status = 5
    next_step = "see that the host is up and that ssh reaches it, then repeat the command"


class HostUnreachable(TransportError):
    code = "unreachable"


class HostTimeout(TransportError):
    code = "timeout"


class KeyRefused(TransportError):
    code = "key-refused"


class HostKeyMismatch(TransportError):
    code = "host-key"


class JobFailed(OrchError):
    code = "job-failed"
    exit_status = 6
    next_step = "see what failed first: glm2-orch diagnose"


class JobHung(OrchError):
    code = "job-hung"
    exit_status = 7
    next_step = "see where the ranks stand: glm2-orch diagnose"


class JobCancelled(OrchError):
    code = "job-cancelled"
    exit_status = 8


class Busy(OrchError):
    code = "busy"
    exit_status = 9
    next_step = "wait until the other one has ended, then repeat the command"


class Fenced(Busy):
    code = "fenced"


class PortTaken(Busy):
    code = "port-taken"


class CheckpointError(OrchError):
    code = "checkpoint"
    exit_status = 10
    next_step = "look at the files: glm2-orch ckpt inspect PATH"


class PartialFailure(OrchError):
    code = "partial"
    exit_status = 11
    next_step = "repeat the command for the rest"


class HostErrors(OrchError):
    """Errors of several hosts at once, none of them hidden: see ``errors``.

    The exit status and code are those of the gravest: a host that is not ready or unreachable
    is named before one that is busy.
    """

    code = "hosts"

    def __init__(self, message: str, errors: Sequence[OrchError]) -> None:
        gravest = min(errors, key=lambda error: error.exit_status)
        super().__init__(message, hint=gravest.hint)
        self.errors = tuple(errors)
        self.exit_status = gravest.exit_status


def one_error(message: str, errors: Sequence[OrchError]) -> OrchError:
    """The single error itself, or a HostErrors that says ``message`` and carries all."""
    return errors[0] if len(errors) == 1 else HostErrors(message, errors)


class Terminated(BaseException):
    """SIGTERM reached the command itself; like KeyboardInterrupt, not an error of the tree."""
