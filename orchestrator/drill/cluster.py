"""Real sshd servers on 127.0.1.1, 127.0.1.2, …: hosts of a cluster that is all on this machine.

Each server has its own host key and configuration, and its sessions their own PATH and HOME, so
that nobody's login scripts take part. Works as root and as an ordinary user, for that user only.
"""

from __future__ import annotations

import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from orchestrator.drill.processes import Process, descendants, end, having, wait_until
from orchestrator.errors import HostNotReady
from orchestrator.inventory import Host, ServerId, SshAddress, SshOptions

_PORTS = range(20_000, 32_768)
"""Below /proc/sys/net/ipv4/ip_local_port_range as it is by default, above those that launches
try for their schedulers, and not HCCL's."""
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


def sshd() -> str:
    """The ssh server's program. Raises HostNotReady where it is not installed."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise HostNotReady(
            "sshd is not installed on this machine",
            hint="install it, e.g. apt-get install openssh-server; it need not be started",
        )
    return found


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
    """One sshd and its folder: ``host_key``, ``sshd_config``, ``sshd.log``, ``home/`` and ``bin/``,
    which is at the front of the PATH."""

    folder: Path
    address: str
    port: int
    process: Optional[subprocess.Popen[bytes]] = None
    within: Tuple[str, ...] = ()
    """A command that becomes the server it is given, elsewhere: ``ip netns exec NAME``."""

    def configure(self, authorized_keys: Path, extra: str = "") -> str:
        """Write key and configuration, with the lines ``extra`` of sshd_config; returns the line
        for ``known_hosts``."""
        (self.folder / "home").mkdir(parents=True)
        (self.folder / "bin").mkdir()
        text = _CONFIG.format(
            port=self.port,
            address=self.address,
            folder=self.folder,
            authorized_keys=authorized_keys,
            path=SYSTEM_PATH,
            extra=extra,
        )
        (self.folder / "sshd_config").write_text(text)
        return self.new_key()

    def new_key(self) -> str:
        """Give it another host key, from its next start on; returns the line for
        ``known_hosts``."""
        return f"[{self.address}]:{self.port} {write_key(self.folder / 'host_key')}\n"

    def start(self) -> None:
        (self.folder / "sshd.pid").unlink(missing_ok=True)
        command = [
            *self.within,
            sshd(),
            "-D",
            "-f",
            f"{self.folder}/sshd_config",
            "-E",
            f"{self.folder}/sshd.log",
        ]
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
        end(self.connections())

    def freeze(self) -> None:
        """Nothing comes back from the host any more, not even a refusal."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        for one in self.connections():
            one.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        for one in self.connections():
            one.send(signal.SIGCONT)
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the server and its connections; what runs in them is left alone."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGSTOP)  # no new connection meanwhile
            self.cut()
            self.process.kill()
            self.process.wait()
        self.process = None

    def close(self) -> None:
        """End the server and everything that was started through it, detached or not: no process
        outside the host has its HOME."""
        self.stop()
        end(having("HOME", str(self.folder / "home")))

    def connections(self) -> List[Process]:
        assert self.process is not None
        return [one for one in descendants(self.process.pid) if one.name.startswith("sshd")]

    def _listens(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            log = (self.folder / "sshd.log").read_text("utf-8", "replace").strip()
            raise HostNotReady(
                f"sshd on {self.address}:{self.port} ended: {log}",
                hint="see whether the address and port can be used on this machine",
            )
        # sshd writes this when it listens. A connection could have been taken by another's sshd.
        pid_file = self.folder / "sshd.pid"
        return pid_file.exists() and pid_file.read_text().strip() == str(self.process.pid)


class Loopback:
    """A cluster of ``count`` hosts of two devices with an sshd each, below ``folder``. Names,
    addresses and server ids are the same. ``port``: of all servers, else a free one."""

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        port: Optional[int] = None,
        sshd_config: str = "",
        connect_timeout: float = 5.0,
    ) -> None:
        sshd()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # for its privilege separation
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        self.folder = folder
        self._connect_timeout = connect_timeout
        self.key = folder / "id_ed25519"
        self.known_hosts = folder / "known_hosts"
        addresses = [f"127.0.1.{number}" for number in range(1, count + 1)]
        self.port = port or free_port(addresses)
        self._servers = {one: Server(folder / one, one, self.port) for one in addresses}
        authorized = folder / "authorized_keys"
        authorized.write_text(write_key(self.key) + "\n")
        self.known_hosts.write_text(
            "".join(server.configure(authorized, sshd_config) for server in self._servers.values())
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

    def server(self, host: Host) -> Server:
        return self._servers[host.address]

    def stop(self, host: Host) -> None:
        """The host disappears from the network: its sshd and connections end, nothing else."""
        self.server(host).stop()

    def cut(self, host: Host) -> None:
        """All connections to the host are lost; new ones are accepted."""
        self.server(host).cut()

    def start(self, host: Host) -> None:
        """The host is back, with the same key."""
        self.server(host).start()
        self.server(host).wait_ready()

    def inventory(
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
                connect_timeout=self._connect_timeout,
            ),
        )


def _overrides(host: Host) -> Dict[str, object]:
    ssh = host.ssh
    return {
        "devices": list(host.devices),
        "device_target": host.device_target,
        "workdir": host.workdir,
        "python": host.python,
        **({"device_ips": list(host.device_ips)} if host.device_ips else {}),
        "ssh": {
            "user": ssh.user,
            "port": ssh.port,
            "key": ssh.key,
            "known_hosts": ssh.known_hosts,
            "connect_timeout": ssh.connect_timeout,
        },
    }


def free_port(addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port that is free on every address right now: none that a preflight wants free, and none
    that the kernel gives to whoever connects to somewhere."""
    for port in random.sample(_PORTS, 100):
        if all(_is_free(one, port) for one in addresses):
            return port
    raise HostNotReady(f"no port is free on {addresses[0]} and its neighbours", hint="try again")


def _is_free(address: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True
