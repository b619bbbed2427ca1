"""Connections that lead through jump hosts, or through a command.

All hosts behind a jump host share one connection to it, each on a channel of its own: one handshake
there, however many hosts, where an ``ssh -J`` for each would be dropped by its sshd from about ten
at once (MaxStartups). It ends with the last host behind it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from dataclasses import replace
from typing import Callable, Dict, Optional, Tuple

import paramiko

from orchestrator.errors import HostUnreachable, OrchError
from orchestrator.inventory import Gateway, Host

Connect = Callable[[Host], paramiko.Transport]
Drop = Callable[[paramiko.Transport], None]

COMMANDS_AT_ONCE = threading.BoundedSemaphore(8)
"""A ProxyCommand most often goes through one jump host, each time with a handshake there."""


_BROKEN = (paramiko.SSHException, EOFError, OSError)
"""What Paramiko raises on a connection that is breaking down."""


class Tunnel:
    """A channel through a jump host, with what Paramiko needs of a socket."""

    def __init__(self, channel: paramiko.Channel, let_go: Callable[[], None]) -> None:
        self._channel = channel
        self._let_go: Optional[Callable[[], None]] = let_go
        self._lock = threading.Lock()
        self._closed = False  # Paramiko looks at it, as sockets have it
        self.send = channel.send
        self.recv = channel.recv
        self.settimeout = channel.settimeout

    def shutdown(self, how: int) -> None:
        with contextlib.suppress(*_BROKEN):
            self._channel.shutdown(how)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(*_BROKEN):
            self._channel.close()
        with self._lock:
            let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()


class _Way:
    """The connection to one jump host, and how many use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Optional[paramiko.Transport] = None
        self.users = 0


class GatewayPool:
    """Shared connections to jump hosts. ``connect`` makes one, ``drop`` ends it."""

    def __init__(self, connect: Connect, drop: Drop) -> None:
        self._connect = connect
        self._drop = drop
        self._ways: Dict[Tuple[Gateway, ...], _Way] = {}
        self._lock = threading.Lock()

    def tunnel(self, host: Host, timeout: float) -> Tunnel:
        """A channel to ``host`` through its gateways, which are connected to when need be.

        Raises what connecting to a gateway raises, HostUnreachable when the last one does not
        reach the host within ``timeout`` seconds.
        """
        with self._lock:
            way = self._ways.setdefault(host.ssh.gateways, _Way())
        with way.lock:
            if way.connection is None or not way.connection.is_active():
                way.connection = self._open(host)
            connection = way.connection
            way.users += 1

        def let_go() -> None:
            with way.lock:
                way.users -= 1
                if not way.users and way.connection is not None:
                    self._drop(way.connection)
                    way.connection = None

        try:
            return Tunnel(_channel(connection, host, timeout), let_go)
        except BaseException:
            let_go()
            raise

    def _open(self, host: Host) -> paramiko.Transport:
        gateway = host.ssh.gateways[-1]
        try:
            return self._connect(_as_host(host, gateway))
        except OrchError as error:
            error.message = f"the jump host: {error.message}"
            raise


def run_command(host: Host) -> socket.socket:
    """A socket whose other end is the input and output of the host's ProxyCommand."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {host.ssh.proxy_command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    # It ends when our end is closed; somebody has to take note of that.
    threading.Thread(target=process.wait, daemon=True, name="proxy-command").start()
    return ours


def _channel(connection: paramiko.Transport, host: Host, timeout: float) -> paramiko.Channel:
    there = (str(host.address), host.ssh.port)
    gateway = host.ssh.gateways[-1]
    where = f"{host.address} port {host.ssh.port}"
    try:
        return connection.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=timeout)
    except paramiko.ChannelException as refusal:
        hint = "check the address and its sshd, seen from the jump host"
        if refusal.code == 1:
            hint = "its sshd must allow it: AllowTcpForwarding yes, and PermitOpen"
        raise HostUnreachable(
            f"the jump host {gateway.address} does not connect to {where}: {refusal.text}",
            hint=hint,
            host=host.name,
        ) from refusal
    except _BROKEN as failure:
        raise HostUnreachable(
            f"the jump host {gateway.address} gives no answer about {where}: {failure}",
            hint="check the host and the network, seen from the jump host",
            host=host.name,
        ) from failure


def _as_host(host: Host, gateway: Gateway) -> Host:
    """The gateway as a host that is reached through those before it; errors name ``host``."""
    ssh = replace(
        host.ssh,
        user=gateway.user,
        port=gateway.port,
        key=gateway.key,
        known_hosts=gateway.known_hosts,
        gateways=host.ssh.gateways[:-1],
        proxy_command=None,
    )
    return replace(host, address=gateway.address, ssh=ssh)
