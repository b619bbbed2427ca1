"""Opening an SSH connection: TCP, key exchange, host key, authentication; every failure typed.

What is set here was measured (``benchmarks/fan_out.py``): curve25519 costs a fraction of the
newer and older key exchanges, TCP_NODELAY halves a connect, AES-128-GCM is the fastest cipher, and
more than 32 handshakes at once gain nothing. TCP keepalives and TCP_USER_TIMEOUT are what makes a
silent network visible; SSH's own keepalives do not.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import random
import socket
import stat
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import paramiko

from orchestrator.errors import (
    HostKeyMismatch,
    HostTimeout,
    HostUnreachable,
    KeyRefused,
    TransportError,
)
from orchestrator.inventory import Host
from orchestrator.transport.gateways import COMMANDS_AT_ONCE, GatewayPool, Tunnel, run_command
from orchestrator.transport.known_hosts import (
    HostKey,
    fingerprint,
    known_hosts_files,
    load_known_hosts,
)

MAX_HANDSHAKES = 32

logger = logging.getLogger(__name__)
# Paramiko logs what it also raises; without a handler, Python would print that on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_KEX_FIRST = ("curve25519-sha256", "curve25519-sha256@libssh.org")
_CIPHERS_FIRST = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
# OpenSSH's own limit for ciphers of 128-bit blocks. Paramiko's, 512 MiB, stalls long transfers.
_REKEY_BYTES = 1 << 36
_SILENCE_MS = 20_000
# sshd drops connections at random while too many are in their handshake (MaxStartups).
_DROPPED_RETRIES = 3


def open_connection(host: Host) -> paramiko.Transport:
    """An authenticated connection to ``host``, its key checked against the known hosts.

    Raises HostUnreachable, HostTimeout, HostKeyMismatch or KeyRefused. The time limit is
    ``host.ssh.connect_timeout`` for everything together, without waiting for a free handshake.
    """
    if host.ssh.gateways:
        return _open(host, _gateways.tunnel(host, host.ssh.connect_timeout))
    with _handshakes, COMMANDS_AT_ONCE if host.ssh.proxy_command else contextlib.nullcontext():
        return _open(host)


def _open(host: Host, tunnel: Optional[Tunnel] = None) -> paramiko.Transport:
    """As often as the server drops us while it is busy, within the time limit."""
    deadline = time.monotonic() + host.ssh.connect_timeout
    attempt = 0
    while True:
        attempt += 1
        try:
            return _handshake(host, deadline, tunnel)
        except _Dropped:
            pause = random.uniform(0.1, 0.5) * attempt
            if attempt > _DROPPED_RETRIES or time.monotonic() + pause >= deadline:
                raise
            time.sleep(pause)
        if tunnel is not None:
            tunnel = _gateways.tunnel(host, max(deadline - time.monotonic(), 0.1))


def drop_connection(connection: paramiko.Transport) -> None:
    """Close at once. Paramiko alone would wait for its reader to look up, 0.1 s later."""
    with contextlib.suppress(OSError):  # the other side was faster
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    connection.sock.close()  # paramiko leaves it open when nothing has been negotiated yet


class _Dropped(HostUnreachable):
    """The server took the TCP connection and closed it before it said anything."""


# A host behind a gateway waits for it without holding a free handshake, so all may wait at once.
_gateways = GatewayPool(lambda gateway: open_connection(gateway), drop_connection)


def _handshake(host: Host, deadline: float, tunnel: Optional[Tunnel]) -> paramiko.Transport:
    known = _known_keys(host)
    sock: Any = tunnel
    if sock is None:
        sock = run_command(host) if host.ssh.proxy_command else _connect_tcp(host, deadline)
    connection = paramiko.Transport(sock)
    try:
        _tune(connection, host, known)
        _negotiate(connection, host, deadline)
        _check_host_key(connection.get_remote_server_key(), host, known)
        _authenticate(connection, host, deadline)
    except BaseException:
        drop_connection(connection)
        raise
    return connection


def _connect_tcp(host: Host, deadline: float) -> socket.socket:
    where = _where(host)
    limit = max(deadline - time.monotonic(), 0.1)
    try:
        sock = socket.create_connection((host.address, host.ssh.port), timeout=limit)
    except (socket.gaierror, UnicodeError) as failure:  # unknown, or no possible name
        raise HostUnreachable(
            f"the name {host.address!r} cannot be resolved",
            hint="check the address in the inventory, and DNS or /etc/hosts on this machine",
            host=host.name,
        ) from failure
    except socket.timeout as failure:
        raise _timeout(host, f"{where} does not answer") from failure
    except ConnectionRefusedError as failure:
        raise HostUnreachable(
            f"{where} refuses the connection",
            hint="the host is up but no sshd listens there: check the port, or start sshd",
            host=host.name,
        ) from failure
    except OSError as failure:
        raise HostUnreachable(
            f"{where} cannot be reached: {failure.strerror or failure}",
            hint="check the address, the routes and the firewalls in between",
            host=host.name,
        ) from failure
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _SILENCE_MS),
    ):
        if hasattr(socket, option):  # not on every system a controller runs on
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _tune(connection: paramiko.Transport, host: Host, known: List[HostKey]) -> None:
    options = connection.get_security_options()
    options.kex = _first(_KEX_FIRST, options.kex)
    options.ciphers = _first(_CIPHERS_FIRST, options.ciphers)
    # Ask for the types of key that are known, or a right server would look like a wrong one.
    types: List[str] = []
    for key in known:
        types += _RSA_SIGNATURES if key.type == "ssh-rsa" else (key.type,)
    options.key_types = _first(types, options.key_types)
    connection.packetizer.REKEY_BYTES = _REKEY_BYTES
    connection.banner_timeout = host.ssh.connect_timeout
    connection.handshake_timeout = host.ssh.connect_timeout


def _negotiate(connection: paramiko.Transport, host: Host, deadline: float) -> None:
    try:
        connection.start_client(timeout=max(deadline - time.monotonic(), 0.1))
    except (paramiko.SSHException, EOFError, OSError) as failure:
        if time.monotonic() >= deadline:
            raise _timeout(host, f"{_where(host)} accepts but does not speak SSH") from failure
        if isinstance(failure, paramiko.ssh_exception.IncompatiblePeer):
            raise HostUnreachable(
                f"no common SSH algorithms with {_where(host)}: {failure}",
                hint="its sshd is too old or too restricted",
                host=host.name,
            ) from failure
        raise _Dropped(
            f"{_where(host)} closed the connection before the key exchange was over",
            hint="is this an SSH server? If so, its log says why (MaxStartups, a full disk, …)",
            host=host.name,
        ) from failure
    if not connection.initial_kex_done:  # paramiko returns when the time is over
        raise _timeout(host, f"{_where(host)} accepts but does not finish the SSH key exchange")


def _known_keys(host: Host) -> List[HostKey]:
    files = known_hosts_files(host)
    try:
        return load_known_hosts(files).keys_of(host.address, host.ssh.port)
    except OSError as failure:
        raise HostKeyMismatch(
            f"the known hosts cannot be read: {failure}",
            hint="make the file readable, or name another one as ssh.known_hosts",
            host=host.name,
        ) from failure


def _check_host_key(offered: paramiko.PKey, host: Host, known: List[HostKey]) -> None:
    files = known_hosts_files(host)
    blob = offered.asbytes()
    shown = f"{offered.get_name()} {fingerprint(blob)}"
    if blob in load_known_hosts(files).revoked:
        raise HostKeyMismatch(
            f"the host key of {_where(host)} ({shown}) is marked as revoked",
            hint="do not connect: the key may be in other hands; ask who runs this host",
            host=host.name,
        )
    if any(blob == key.blob for key in known):
        return
    name = host.address if host.ssh.port == 22 else f"[{host.address}]:{host.ssh.port}"
    if known:
        entry = next((key for key in known if key.type == offered.get_name()), known[0])
        raise HostKeyMismatch(
            f"the host key of {_where(host)} has changed: it is {shown}, "
            f"known is {entry.type} {entry.fingerprint} ({entry.place})",
            hint="another machine may be answering. If the host was reinstalled, remove the old "
            f"key with `ssh-keygen -R '{name}' -f {files[0]}` and add the new one",
            host=host.name,
        )
    authority = load_known_hosts(files).authority_of(host.address, host.ssh.port)
    if authority is not None:
        raise HostKeyMismatch(
            f"the host key of {_where(host)} ({shown}) is not known itself; the certificate that "
            f"vouches for it ({authority.place}, @cert-authority) cannot be checked here",
            hint="`ssh` checks certificates, so take the key over it: "
            f"`ssh -p {host.ssh.port} {host.address} cat /etc/ssh/ssh_host_ed25519_key.pub | "
            f"sed 's/^/{name} /' >> {files[0]}`",
            host=host.name,
        )
    scan = f"ssh-keyscan -p {host.ssh.port} {host.address}"
    raise HostKeyMismatch(
        f"the host key of {_where(host)} ({shown}) is not known",
        hint=f"compare it on the host (`ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub`); when it is "
        f"right: `{scan} >> {files[0]}`",
        host=host.name,
    )


def _authenticate(connection: paramiko.Transport, host: Host, deadline: float) -> None:
    user = host.ssh.user or getpass.getuser()
    tried = []
    for name, key in _identities(host):
        tried.append(name)
        connection.auth_timeout = max(deadline - time.monotonic(), 0.1)
        try:
            if not connection.auth_publickey(user, key):
                return
        except paramiko.AuthenticationException as refusal:
            if time.monotonic() >= deadline:
                raise _timeout(host, f"{_where(host)} does not answer the login") from refusal
            if not connection.is_active():
                break  # too many keys tried: the server has hung up
        except (paramiko.SSHException, EOFError, OSError) as failure:
            raise HostUnreachable(
                f"{_where(host)} closed the connection during the login: {failure}",
                hint="the log of its sshd says why",
                host=host.name,
            ) from failure
    if not tried:
        raise KeyRefused(
            "there is no SSH key to log in with",
            hint="set ssh.key in the inventory, or load a key with ssh-add",
            host=host.name,
        )
    raise KeyRefused(
        f"{_where(host)} does not let user {user!r} in with {', '.join(tried)}",
        hint=f"try `ssh-copy-id -p {host.ssh.port} {user}@{host.address}`, "
        "or correct ssh.user and ssh.key in the inventory",
        host=host.name,
    )


def _identities(host: Host) -> Iterator[Tuple[str, paramiko.PKey]]:
    """The key of the inventory and no other; without one, the agent's and the usual files."""
    if host.ssh.key is not None:
        path = Path(host.ssh.key).expanduser()
        yield str(path), _load_identity(path, host.name)
        return
    agent = paramiko.Agent()
    try:
        for key in agent.get_keys():
            yield f"the agent's {key.fingerprint}", key
    finally:
        agent.close()
    for name in _DEFAULT_KEYS:
        path = Path("~/.ssh").expanduser() / name
        if path.exists():
            yield str(path), _load_identity(path, host.name)


def _load_identity(path: Path, host: str) -> paramiko.PKey:
    try:
        info = path.stat()
        return _read_identity(path, info.st_mtime_ns, stat.S_IMODE(info.st_mode))
    except FileNotFoundError as failure:
        raise KeyRefused(
            f"the key file {path} does not exist",
            hint="correct ssh.key in the inventory, or make a key with `ssh-keygen -t ed25519`",
            host=host,
        ) from failure
    except OSError as failure:
        raise KeyRefused(
            f"the key file {path} cannot be read: {failure.strerror}",
            hint="it must belong to you, with mode 0600",
            host=host,
        ) from failure
    except (paramiko.PasswordRequiredException, TypeError) as failure:
        raise KeyRefused(
            f"the key file {path} is encrypted",
            hint=f"load it once with `ssh-add {path}` and leave ssh.key out of the inventory",
            host=host,
        ) from failure
    except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError) as failure:
        raise KeyRefused(
            f"{path} is not a private key that can be used",
            hint="ssh.key names the private key (not the .pub file) of type Ed25519, ECDSA or RSA",
            host=host,
        ) from failure


@lru_cache(maxsize=64)
def _read_identity(path: Path, mtime_ns: int, mode: int) -> paramiko.PKey:
    """Once a file and version, so that 200 hosts cost one read and at most one warning."""
    if mode & 0o077:
        logger.warning("the private key %s can be read by others: chmod 600 it", path)
    return paramiko.PKey.from_path(path)


def _first(wanted: Sequence[str], available: Sequence[str]) -> Tuple[str, ...]:
    """``available`` with those ``wanted`` in front."""
    front = tuple(dict.fromkeys(name for name in wanted if name in available))
    return front + tuple(name for name in available if name not in front)


def _where(host: Host) -> str:
    return f"{host.address} port {host.ssh.port}"


def _timeout(host: Host, what: str) -> TransportError:
    return HostTimeout(
        f"{what} (waited {host.ssh.connect_timeout:g} s)",
        hint="the host may be down, overloaded or behind a firewall that drops packets",
        host=host.name,
    )
