"""Real sshd servers on 127.0.1.1, 127.0.1.2, …: hosts of a cluster that is all on this machine.

Those of the drill (``orchestrator.drill.cluster``), with the Python of the tests as their
``python3`` and stand-in tools where a test adds them. From the command line::

    python -m tests.cluster.sshd up --hosts 12 --port 2222 --dir .loopback
    python -m tests.cluster.sshd down --dir .loopback

makes what ``inventories/loopback12.yaml`` expects: ``.loopback/id_ed25519`` and
``.loopback/known_hosts``. Works as root and as an ordinary user, for that user only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional, Sequence

from orchestrator.drill import cluster, processes
from orchestrator.drill.cluster import write_key
from orchestrator.drill.processes import descendants, having, wait_until
from orchestrator.errors import HostNotReady
from orchestrator.inventory import Host

__all__ = ["SSHD", "Loopback", "wait_until", "with_ssh", "write_key"]

try:
    SSHD: Optional[str] = cluster.sshd()
except HostNotReady:
    SSHD = None


class Loopback(cluster.Loopback):
    """A cluster whose hosts have the Python of the tests, with all that is installed in it."""

    def __init__(
        self, folder: Path, count: int, *, port: Optional[int] = None, sshd_config: str = ""
    ) -> None:
        super().__init__(folder, count, port=port, sshd_config=sshd_config, connect_timeout=20.0)
        for host in self.hosts:
            self.add_tool(host, "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    def path_dir(self, host: Host) -> Path:
        """A folder at the front of the host's PATH: put fake tools there."""
        return self.server(host).folder / "bin"

    def add_tool(self, host: Host, name: str, script: str) -> None:
        """An executable ``name`` on the host's PATH; ``script`` starts with ``#!``."""
        tool = self.path_dir(host) / name
        tool.write_text(script)
        tool.chmod(0o755)


def with_ssh(host: Host, **changes: object) -> Host:
    """``host`` with some of its SSH options changed."""
    return replace(host, ssh=replace(host.ssh, **changes))  # type: ignore[arg-type]


def _up(folder: Path, count: int, port: int) -> None:
    if folder.exists():
        _down(folder)
    made = Loopback(folder, count, port=port)
    made.__enter__()
    print(f"sshd on 127.0.1.1 to {made.hosts[-1].address}, port {port}, key {made.key}")


def _down(folder: Path) -> None:
    ended = 0
    for pid_file in sorted(folder.glob("*/sshd.pid")):
        listener = processes.find(int(pid_file.read_text()))
        if listener and str(pid_file.parent.resolve() / "sshd_config") in listener.command():
            processes.end([listener, *descendants(listener.pid)])
            ended += 1
        processes.end(having("HOME", str(pid_file.parent.resolve() / "home")))
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{ended} sshd servers ended")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.sshd", description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--port", type=int, default=2222)
    parser.add_argument("--dir", type=Path, default=Path(".loopback"))
    options = parser.parse_args(arguments)
    if options.command == "up":
        _up(options.dir, options.hosts, options.port)
    else:
        _down(options.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
