"""Streams over the system's ``ssh``: long transfers at a fraction of what they cost in Python.

Measured (``benchmarks/collect.py``): the same bytes take half the client's CPU of paramiko's. The
user's own configuration takes no part: which key, which user and which host keys hold is decided
by the inventory, as for all other connections.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set

from orchestrator.errors import HostUnreachable
from orchestrator.inventory import Host
from orchestrator.transport.base import Stream, Streams
from orchestrator.transport.known_hosts import known_hosts_files, load_known_hosts
from orchestrator.transport.pipes import STDERR_TAIL, Collector

CHUNK = 1 << 18
"""Bytes read at once: what stays in a core's cache until it is hashed and written."""

_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_LOST = 255  # ssh's own exit status when the connection failed, or broke
_GRACE_S = 2.0

_OPTIONS = (
    *("-F", "none", "-T", "-n"),
    "-oBatchMode=yes",
    "-oStrictHostKeyChecking=yes",
    "-oGlobalKnownHostsFile=/dev/null",
    "-oUpdateHostKeys=no",
    "-oControlMaster=no",
    "-oControlPath=none",
    "-oClearAllForwardings=yes",
    "-oCompression=no",
    "-oLogLevel=ERROR",
    # A silent network is noticed within 20 s.
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=4",
    # Cheapest first, by measurement; the others so that an older or stricter server serves too.
    "-oCiphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,aes256-ctr,"
    "chacha20-poly1305@openssh.com",
    "-oKexAlgorithms=curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,"
    "diffie-hellman-group14-sha256,diffie-hellman-group16-sha512",
)


def find_ssh() -> Optional[str]:
    """Path of the system's ``ssh``; None where there is none."""
    return shutil.which("ssh")


@contextmanager
def ssh_streams(program: str, hosts: Sequence[Host]) -> Iterator[Dict[str, Streams]]:
    """For each of ``hosts`` reached over SSH directly, by name, a way to start a command there
    with the ssh at ``program``. Each stream is a connection of its own. All end with the block.
    A jump host would drop so many: hosts behind one are left out, for their shared connection.

    The host keys that we know are written to a file of ours, which is all that ssh looks at.
    Streams raise HostUnreachable when the connection cannot be made or breaks.
    """
    reached = [
        host
        for host in hosts
        if host.connection == "ssh" and not host.ssh.gateways and not host.ssh.proxy_command
    ]
    running: List[OpenSshStream] = []
    with tempfile.TemporaryDirectory(prefix="glm2-orch-") as folder:
        known = Path(folder, "known_hosts")
        known.write_text("".join(_known_lines(reached)), encoding="ascii")

        def opener(host: Host) -> Streams:
            def start(argv: Sequence[str]) -> Stream:
                command = [program, *_arguments(host, known), shlex.join(argv)]
                stream = OpenSshStream(host.name, command)
                running.append(stream)
                return stream

            return start

        try:
            yield {host.name: opener(host) for host in reached}
        finally:
            for stream in running:
                stream.close()


class OpenSshStream:
    """Standard output of a command on a host, through a child process ``ssh``."""

    def __init__(self, host: str, argv: Sequence[str]) -> None:
        self._host = host
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout = self._process.stdout
        with contextlib.suppress(OSError):  # more than the system allows: the usual 64 KiB
            fcntl.fcntl(self._stdout.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
        stderr = self._process.stderr
        self._errors = Collector(stderr.read1, stderr.close, STDERR_TAIL)  # type: ignore[attr-defined]
        self._ended_by_us = False

    def __iter__(self) -> Iterator[bytes]:
        descriptor = self._stdout.fileno()
        while True:
            chunk = os.read(descriptor, CHUNK)
            if not chunk:
                break
            yield chunk
        status = self._process.wait()
        if status in (_LOST, -9, -15) and not self._ended_by_us:
            said = self.stderr.decode("utf-8", "replace").strip().splitlines()
            raise HostUnreachable(
                f"ssh ended with status {status}: {said[-1] if said else 'it said nothing'}",
                hint="check the network and the host; repeat the command to go on",
                host=self._host,
            )

    def close(self) -> None:
        if self._process.poll() is None:
            self._ended_by_us = True
            self._process.terminate()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.join(_GRACE_S)
        self._stdout.close()

    @property
    def exit_status(self) -> Optional[int]:
        status = self._process.poll()
        return None if status is None or status < 0 or status == _LOST else status

    @property
    def stderr(self) -> bytes:
        if self._process.poll() is not None:
            self._errors.join(_GRACE_S)
        return self._errors.data


def _arguments(host: Host, known: Path) -> List[str]:
    found = [
        *_OPTIONS,
        f"-oUserKnownHostsFile={_quoted(known)}",
        f"-oConnectTimeout={max(1, round(host.ssh.connect_timeout))}",
        *("-p", str(host.ssh.port)),
    ]
    if host.ssh.user is not None:
        found += ["-l", host.ssh.user]
    if host.ssh.key is not None:  # this key and no other
        key = Path(host.ssh.key).expanduser()
        found += ["-oIdentitiesOnly=yes", f"-oIdentityFile={_quoted(key)}"]
    return [*found, "--", host.address]


def _quoted(path: Path) -> str:
    """As ssh_config wants it: blanks in quotes, and % is no token."""
    return '"' + str(path).replace("%", "%%") + '"'


def _known_lines(hosts: Sequence[Host]) -> Iterator[str]:
    revoked: Set[bytes] = set()
    for host in hosts:
        known = load_known_hosts(known_hosts_files(host))
        revoked |= known.revoked
        port = host.ssh.port
        name = host.address if port == 22 else f"[{host.address}]:{port}"
        for key in known.keys_of(host.address, port):
            if key.blob not in known.revoked:
                yield f"{name} {key.type} {base64.b64encode(key.blob).decode()}\n"
    for blob in sorted(revoked):
        kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")
        yield f"@revoked * {kind} {base64.b64encode(blob).decode()}\n"
