"""Real sshd servers on 127.0.1.1, 127.0.1.2, …: hosts of a cluster that is all on this machine.

Each server has its own host key, port and configuration, and its sessions their own PATH and HOME
(so that nobody's login scripts take part). From the command line::

    python -m tests.cluster.sshd up --hosts 12 --port 2222 --dir .loopback
    python -m tests.cluster.sshd down --dir .loopback

makes what ``inventories/loopback12.yaml`` expects: ``.loopback/id_ed25519`` and
``.loopback/known_hosts``. Works as root and as an ordinary user, for that user only.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import psutil
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from orchestrator.inventory import Host, ServerId, SshAddress, SshOptions

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {authorized_keys}
SetEnv "PATH={folder}/bin:{path}" "HOME={folder}/home"
StrictModes no
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
{extra}
"""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Return as soon as ``condition()`` holds; fail with ``what`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for: {what}")
        time.sleep(0.01)


def write_key(path: Path) -> str:
    """A new Ed25519 key pair, ``path`` and ``path``.pub; returns the public key's text."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path.with_name(path.name + ".pub").write_text(public + "\n")
    return public


@dataclass
class Server:
    """One sshd and its folder: ``host_key``, ``sshd_config``, ``sshd.log``, ``bin/``."""

    folder: Path
    address: str
    port: int
    process: Optional[subprocess.Popen[bytes]] = None

    def configure(self, authorized_keys: Path, extra: str) -> str:
        """Write key and configuration; returns the line for ``known_hosts``."""
        (self.folder / "bin").mkdir(parents=True)
        (self.folder / "home").mkdir()
        # `python3` on the host is the Python of the tests, with all that is installed in it.
        _write_tool(self.folder / "bin/python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        public = write_key(self.folder / "host_key")
        text = _CONFIG.format(
            port=self.port,
            address=self.address,
            folder=self.folder,
            authorized_keys=authorized_keys,
            path=SYSTEM_PATH,
            extra=extra,
        )
        (self.folder / "sshd_config").write_text(text)
        return f"[{self.address}]:{self.port} {public}\n"

    def start(self) -> None:
        assert SSHD is not None
        command = [SSHD, "-D", "-f", f"{self.folder}/sshd_config", "-E", f"{self.folder}/sshd.log"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        wait_until(self._listens, f"sshd on {self.address}:{self.port}")

    def cut(self) -> None:
        """End all connections. What runs in them is left alone, as when a network fails."""
        assert self.process is not None
        inside = psutil.Process(self.process.pid).children(recursive=True)
        _kill([process for process in inside if _is_sshd(process)])

    def stop(self) -> None:
        """End the server and its connections; what runs in them is left alone."""
        if self.process is not None and self.process.poll() is None:
            psutil.Process(self.process.pid).suspend()  # no new connection meanwhile
            self.cut()
            self.process.kill()
            self.process.wait()
        self.process = None

    def close(self) -> None:
        """End the server and everything that was started through it, detached or not."""
        self.stop()
        _kill(_inhabitants(self.folder / "home"))

    def _listens(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"sshd ended: {(self.folder / 'sshd.log').read_text()}")
        # sshd writes this when it listens. A connection could have been taken by another's sshd.
        pid_file = self.folder / "sshd.pid"
        return pid_file.exists() and pid_file.read_text().strip() == str(self.process.pid)


class Loopback:
    """A cluster of ``hosts`` with an sshd each. Names, addresses and server ids are the same."""

    def __init__(
        self, folder: Path, count: int, *, port: Optional[int] = None, sshd_config: str = ""
    ) -> None:
        if SSHD is None:
            raise FileNotFoundError("sshd is not installed")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # for its privilege separation
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        self.folder = folder
        self.key = folder / "id_ed25519"
        self.known_hosts = folder / "known_hosts"
        addresses = [f"127.0.1.{number}" for number in range(1, count + 1)]
        self.port = port or _free_port(addresses)
        self._servers = {a: Server(folder / a, a, self.port) for a in addresses}
        (folder / "authorized_keys").write_text(write_key(self.key) + "\n")
        self.known_hosts.write_text(
            "".join(
                server.configure(folder / "authorized_keys", sshd_config)
                for server in self._servers.values()
            )
        )
        self.hosts: Tuple[Host, ...] = tuple(self._host(address) for address in addresses)

    def __enter__(self) -> Loopback:
        try:
            for server in self._servers.values():
                server.start()
            for server in self._servers.values():
                server.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.close()

    def path_dir(self, host: Host) -> Path:
        """A folder at the front of the host's PATH: put fake tools there."""
        return self.server(host).folder / "bin"

    def add_tool(self, host: Host, name: str, script: str) -> None:
        """An executable ``name`` on the host's PATH; ``script`` starts with ``#!``."""
        _write_tool(self.path_dir(host) / name, script)

    def server(self, host: Host) -> Server:
        return self._servers[host.address]

    def stop(self, host: Host) -> None:
        """The host disappears from the network: its sshd and connections end, nothing else."""
        self.server(host).stop()

    def start(self, host: Host) -> None:
        """The host is back, with the same key."""
        self.server(host).start()
        self.server(host).wait_ready()

    def cut(self, host: Host) -> None:
        """All connections to the host are lost; new ones are accepted."""
        self.server(host).cut()

    def inventory_yaml(
        self, path: Optional[Path] = None, *, hosts: Optional[Sequence[Host]] = None, **top: object
    ) -> Path:
        """Write an inventory of ``hosts`` (default: all), with ``top`` at its top level."""
        path = path or self.folder / "inventory.yaml"
        chosen = self.hosts if hosts is None else hosts
        document: Dict[str, object] = {
            "cluster": "loopback",
            "hosts": {host.name: _overrides(host) for host in chosen},
            **top,
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def _host(self, address: str) -> Host:
        return Host(
            name=address,
            address=SshAddress(address),
            server_id=ServerId(address),
            devices=(0, 1),
            device_target="CPU",
            workdir=str(self.folder / address / "workdir"),
            python=sys.executable,
            ssh=SshOptions(
                user=getpass.getuser(),
                port=self.port,
                key=str(self.key),
                known_hosts=str(self.known_hosts),
                connect_timeout=20.0,
            ),
        )


def with_ssh(host: Host, **changes: object) -> Host:
    """``host`` with some of its SSH options changed."""
    return replace(host, ssh=replace(host.ssh, **changes))  # type: ignore[arg-type]


def _overrides(host: Host) -> Dict[str, object]:
    return {
        "devices": list(host.devices),
        "device_target": host.device_target,
        "workdir": host.workdir,
        "python": host.python,
        **({"device_ips": list(host.device_ips)} if host.device_ips else {}),
        "ssh": {
            "user": host.ssh.user,
            "port": host.ssh.port,
            "key": host.ssh.key,
            "known_hosts": host.ssh.known_hosts,
            "connect_timeout": host.ssh.connect_timeout,
        },
    }


def _write_tool(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


def _free_port(addresses: Sequence[str]) -> int:
    """A port that is free on every address right now."""
    for _ in range(100):
        with closing(socket.socket()) as first:
            first.bind((addresses[0], 0))
            port = int(first.getsockname()[1])
            if all(_is_free(address, port) for address in addresses[1:]):
                return port
    raise AssertionError("no port is free on all addresses")


def _is_free(address: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def _inhabitants(home: Path) -> List[psutil.Process]:
    """All processes whose HOME is this folder, which no process outside the host has."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def _is_sshd(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("sshd")
    except psutil.NoSuchProcess:
        return False


def _kill(processes: Sequence[psutil.Process]) -> None:
    """By process object, which knows the start time: never a stranger with a reused id."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: all(map(_is_dead, processes)), f"the end of {processes}")


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _up(folder: Path, count: int, port: int) -> None:
    if folder.exists():
        _down(folder)
    cluster = Loopback(folder, count, port=port)
    cluster.__enter__()
    print(f"sshd on 127.0.1.1 to {cluster.hosts[-1].address}, port {port}, key {cluster.key}")


def _down(folder: Path) -> None:
    ended = 0
    for pid_file in sorted(folder.glob("*/sshd.pid")):
        try:
            listener = psutil.Process(int(pid_file.read_text()))
            if str(pid_file.parent.resolve() / "sshd_config") in listener.cmdline():
                _kill([listener, *listener.children(recursive=True)])
                ended += 1
        except psutil.NoSuchProcess:
            continue
        finally:
            _kill(_inhabitants(pid_file.parent.resolve() / "home"))
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
