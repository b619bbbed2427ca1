"""One process of a run: how it is started, and what is known of it afterwards."""

from __future__ import annotations

import os

from . import processes
from .folder import RunFolder, append_only
from .leases import Lock
from .spec import ProcessSpec

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    import subprocess
    from typing import List, Optional


class Child:
    """A process of the specification that was started."""

    def __init__(
        self, spec: ProcessSpec, popen: "subprocess.Popen[bytes]", start_ticks: int
    ) -> None:
        self.spec = spec
        self.popen = popen
        self.start_ticks = start_ticks
        self.code: Optional[int] = None
        """As a shell shows it, 128 + signal; None while it runs."""
        self.signalled = False
        """We ended it: whatever its exit status, it is not a cause."""

    @property
    def running(self) -> bool:
        return self.code is None


def spawn(folder: RunFolder, run_id: str, spec: ProcessSpec, leases: List[Lock]) -> Child:
    """Start the process in a session of its own, tied to us by the parent-death signal, which
    belongs to the thread that calls. Raises OSError."""
    import subprocess  # here, because arming is to be quick

    supervisor = os.getpid()

    def tie_to_supervisor() -> None:
        processes.die_with_parent()
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(1)

    log = append_only(folder.stdout(spec.name))
    try:
        popen = subprocess.Popen(
            spec.argv,
            cwd=folder.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(os.environ, GLM2_RUN_ID=run_id, GLM2_RUN_DIR=folder.path),
            start_new_session=True,
            preexec_fn=tie_to_supervisor,
            # A device stays leased while any process of ours may use it, even if we are killed.
            pass_fds=[lease.descriptor for lease in leases],
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    finally:
        os.close(log)
    process = processes.read(popen.pid)
    return Child(spec, popen, process.start_ticks if process else 0)
