"""The supervisor's control socket: one request and one answer a connection, a JSON line each.

Both sides name the socket relative to the run folder, because an address of a UNIX socket
holds 107 bytes at most and run folders may be deeper.
"""

from __future__ import annotations

import os
import sys

from .folder import Json
from .light import dumps, loads, socket

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Callable

SOCKET = "control.sock"
_LIMIT = 1 << 16


def listen() -> socket.socket:
    """Make the socket in the current folder; only its owner may connect."""
    if os.path.lexists(SOCKET):
        os.unlink(SOCKET)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(SOCKET)
    finally:
        os.umask(umask)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def serve(listener: socket.socket, answer: Callable[[Json, int], Json]) -> None:
    """Answer one waiting connection: ``answer(request, pid of the caller)``.

    A caller that does not speak up within a second is dropped: nothing may hold up the loop.
    """
    try:
        descriptor, _ = listener._accept()  # type: ignore[attr-defined]
    except OSError:  # the caller has gone again
        return
    connection = socket.socket(fileno=descriptor)
    try:
        connection.settimeout(1.0)
        try:
            request = _receive(connection)
        except (OSError, ValueError):  # gone, too slow, or not our protocol
            return
        reply = answer(request, _caller(connection))
        try:
            connection.sendall(dumps(reply))
        except OSError:  # gone: what it asked for is done all the same
            pass
    finally:
        connection.close()


def ask(run_dir: str, request: Json, timeout: float) -> Json:
    """Send ``request`` to the supervisor of ``run_dir``. Raises OSError when there is none.

    Leaves the process in ``run_dir``.
    """
    os.chdir(run_dir)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(SOCKET)
        connection.sendall(dumps(request))
        return _receive(connection)
    except ValueError as error:
        raise ConnectionError("the supervisor ended without an answer") from error
    finally:
        connection.close()


def _receive(connection: socket.socket) -> Json:
    data = b""
    while not data.endswith(b"\n") and len(data) < _LIMIT:
        part = connection.recv(_LIMIT)
        if not part:
            break
        data += part
    value = loads(data.decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _caller(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)  # struct ucred: pid, uid, gid
