"""Takes staged files on a host and passes them on to other hosts.

The controller runs it over SSH, sends it on standard input and talks to it there, one JSON object a
line; nothing of the program is left on the host. First comes the request:
``{"workdir","block_bytes","trees":[manifest…],"places":[{"path","tree","file"}],"verify","serve":
address or null,"token":64 hexadecimal digits}``, then any of

    {"pull":[{"host","address","port","token"},…]}  fetch what is missing from these, in this order
    {"block":N,"size":S}, and S bytes               a block from the controller

It answers on standard output with ``ready`` (what is missing, and the port), ``progress``,
``stuck`` (no source had the rest), ``filled`` (all is there and in its place) or ``error``, and
ends with its standard input.

Between hosts: the server says a nonce, the client HMAC-SHA256(token, nonce), both in hexadecimal
and a line; then the client writes numbers of blocks, a line each, and gets ``N SIZE`` and the bytes
of each, as soon as the server has it. Only blocks of the manifest can be named; what arrives counts
only with its SHA-256. The bytes are not encrypted. Standard library, Python 3.7 and newer.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, BinaryIO, Callable, Dict, List, Sequence

from .staged import Damaged, StageError, Store, check_place, place

GREETING_S = 10.0
"""Time that a peer has to connect, and to prove that it knows the token."""

WAIT_S = 60.0
"""A block that has not come within that time is asked of another source."""

MAX_PEERS = 32
_WINDOW = 4
_PROGRESS_S = 0.3

Say = Callable[[Dict[str, Any]], None]


def main() -> int:
    """Serve one transfer; the exit status is 0 unless the host cannot take the files (4)."""
    stdin = sys.stdin.buffer
    saying = threading.Lock()

    def say(message: Dict[str, Any]) -> None:
        with saying, contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    try:
        _transfer(json.loads(stdin.readline().decode("ascii")), stdin, say)
    except StageError as error:
        say({"error": {"message": error.message, "hint": error.hint}})
        return 4
    return 0


def _transfer(request: Dict[str, Any], stdin: BinaryIO, say: Say) -> None:
    store = Store(request["workdir"], request["trees"], request["block_bytes"])
    for item in request["places"]:
        check_place(item["path"])
    store.open(request["verify"], lambda folder: say({"waits": folder}))
    work = _Work(store, request, say)
    port, problem = None, None
    if request["serve"] is not None:
        try:
            port = serve(store, request["serve"], request["token"])
        except OSError as failure:
            problem = "cannot listen at {}: {}".format(request["serve"], failure.strerror)
    missing = store.missing()
    say(
        {
            "ready": {
                "port": port,
                "problem": problem,
                "missing": missing,
                "bytes": sum(store.blocks[index].size for index in missing),
            }
        }
    )
    work.look()
    while True:
        line = stdin.readline()
        if not line:
            return
        message = json.loads(line.decode("ascii"))
        if "pull" in message:
            threading.Thread(target=work.pull, args=(message["pull"],), daemon=True).start()
        else:
            data = stdin.read(message["size"])
            if len(data) < message["size"]:
                return  # the controller is gone; what came before is kept
            work.take(message["block"], data)


class _Work:
    """What one transfer has got so far."""

    def __init__(self, store: Store, request: Dict[str, Any], say: Say) -> None:
        self.store = store
        self.places = request["places"]
        self.say = say
        self.bytes = {"controller": 0, "peers": 0}
        self.told = 0.0
        self.done = False
        self.lock = threading.Lock()

    def take(self, index: int, data: bytes) -> None:
        """A block from the controller."""
        try:
            self.store.write(index, data)
        except Damaged as damage:
            raise StageError(
                "{} from the controller arrived damaged".format(damage), "repeat the command"
            ) from None
        self.count("controller", len(data))
        self.look()

    def pull(self, sources: Sequence[Dict[str, Any]]) -> None:
        """Fetch what is missing from other hosts; says ``stuck`` when none has it all."""
        reasons = []
        try:
            for source in sources:
                try:
                    pull(self.store, source, lambda size: self.count("peers", size))
                    break
                except (OSError, ValueError, Damaged) as failure:
                    what = getattr(failure, "strerror", None) or str(failure)
                    if isinstance(failure, Damaged):
                        what = "{} arrived damaged".format(failure)
                    reasons.append("from {}: {}".format(source["host"], what))
            missing = self.store.missing()
            if missing:
                self.say({"stuck": {"missing": missing, "reasons": reasons}})
                return
            self.look(reasons)
        except StageError as error:
            self.say({"error": {"message": error.message, "hint": error.hint}})
            os._exit(4)  # from a thread, while the main one waits for its standard input

    def count(self, origin: str, size: int) -> None:
        with self.lock:
            self.bytes[origin] += size
            now = time.monotonic()
            if now - self.told < _PROGRESS_S:
                return
            self.told = now
        self.say({"progress": self.bytes})

    def look(self, reasons: Sequence[str] = ()) -> None:
        """When all is there: put it in its place and say so, once."""
        if self.store.missing():
            return
        with self.lock:
            if self.done:
                return
            self.done = True
        links: Dict[str, List[str]] = {}
        for item in self.places:
            tree = next(tree for tree in self.store.trees if tree.digest == item["tree"])
            links.setdefault(tree.digest, []).append(item["path"])
            place(item["path"], os.path.join(tree.final, "content", item["file"]).rstrip("/"))
        self.store.used(links)
        self.say({"filled": {"bytes": self.bytes, "reasons": list(reasons)}})


def serve(store: Store, address: str, token: str) -> int:
    """Give blocks to whoever knows the token, in threads; the port. Raises OSError."""
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((address, 0))
        listener.listen(MAX_PEERS)
    except OSError:
        listener.close()
        raise
    slots = threading.BoundedSemaphore(MAX_PEERS)

    def accept() -> None:
        while True:
            peer, _ = listener.accept()
            if not slots.acquire(blocking=False):
                peer.close()
                continue
            threading.Thread(target=give, args=(peer,), daemon=True).start()

    def give(peer: socket.socket) -> None:
        # A peer that goes away, is silent or talks nonsense is its own problem.
        with contextlib.suppress(OSError, ValueError), contextlib.closing(peer):
            _give(store, peer, token)
        slots.release()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def pull(store: Store, source: Dict[str, Any], count: Callable[[int], None]) -> None:
    """Fetch all missing blocks from one source. Raises OSError, ValueError or Damaged when it
    does not have them, StageError when they cannot be kept."""
    sock = socket.create_connection((source["address"], source["port"]), timeout=GREETING_S)
    with contextlib.closing(sock), contextlib.closing(sock.makefile("rb")) as stream:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nonce = stream.readline(128).strip()
        if not nonce:
            raise ValueError("it closed the connection")
        sock.sendall(_proof(source["token"], nonce) + b"\n")
        sock.settimeout(WAIT_S + GREETING_S)
        wanted = store.missing()
        for index in wanted[:_WINDOW]:
            sock.sendall(b"%d\n" % index)
        for at, index in enumerate(wanted):
            head = stream.readline(64).split()
            size = store.blocks[index].size
            if head != [b"%d" % index, b"%d" % size]:
                raise ValueError("it does not have all of it" if not head else "it talks nonsense")
            data = stream.read(size)
            if len(data) < size:
                raise ValueError("the connection ended")
            store.write(index, data)
            count(size)
            for following in wanted[at + _WINDOW : at + _WINDOW + 1]:
                sock.sendall(b"%d\n" % following)


def _give(store: Store, peer: socket.socket, token: str) -> None:
    peer.settimeout(GREETING_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    nonce = secrets.token_hex(32).encode("ascii")
    peer.sendall(nonce + b"\n")
    with contextlib.closing(peer.makefile("rb")) as stream:
        if not hmac.compare_digest(stream.readline(128).strip(), _proof(token, nonce)):
            return
        peer.settimeout(WAIT_S + GREETING_S)
        while True:
            line = stream.readline(32)
            if not line:
                return
            index = int(line)
            if not 0 <= index < len(store.blocks) or not store.wait_for(index, WAIT_S):
                return
            block = store.blocks[index]
            with os.fdopen(store.open_block(index), "rb") as file:
                peer.sendall(b"%d %d\n" % (index, block.size))
                peer.sendfile(file, block.offset, block.size)


def _proof(token: str, nonce: bytes) -> bytes:
    return hmac.new(bytes.fromhex(token), nonce, hashlib.sha256).hexdigest().encode("ascii")
