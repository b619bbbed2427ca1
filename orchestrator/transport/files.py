"""Files to a host, over whatever can run a command there. Shared by all transports."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Sequence

from orchestrator.errors import HostNotReady, OrchError, SpecError
from orchestrator.transport.base import Completed, RemoteFile

Exchange = Callable[[Sequence[str], Iterable[bytes], Optional[float]], Completed]
"""Run a command, feed it chunks, wait at most so many seconds: ``run`` with a streamed input."""

CHUNK = 1 << 18
BOOTSTRAP = (
    "import sys;n=int(sys.argv[1]);exec(compile(sys.stdin.buffer.read(n),'unpack.py','exec'))"
)
# A transfer may take this long before it counts as stuck: a constant for the handshake and the
# flush to disk, and the time of the bytes at a rate that any usable cluster network exceeds.
PUT_BASE_S = 120.0
PUT_BYTES_PER_S = 1 << 20


def put_files(
    exchange: Exchange, *, host: str, python: str, files: Sequence[RemoteFile], dest: str
) -> None:
    """Write ``files`` below ``dest`` on the host through ``node/unpack.py``, which is sent along.

    Sources are read as they are sent, so their size does not matter. Raises HostNotReady for
    everything that is wrong on the host, SpecError for a source that cannot be read here.
    """
    if not dest.startswith("/"):
        raise SpecError(f"the folder on the host must be an absolute path, not {dest!r}", host=host)
    receiver = package_files("orchestrator.node").joinpath("unpack.py").read_bytes()
    outgoing = _Outgoing(files, host)
    # -I: neither PYTHON* variables nor modules in the login folder can get in the way.
    argv = [python, "-I", "-c", BOOTSTRAP, str(len(receiver)), dest]
    timeout = PUT_BASE_S + outgoing.total_bytes / PUT_BYTES_PER_S
    completed = exchange(argv, outgoing.chunks(receiver), timeout)
    answer = _parse_answer(completed, python=python, host=host)
    if "error" in answer:
        raise HostNotReady(answer["error"]["message"], hint=answer["error"]["hint"], host=host)
    if answer["sha256"] != outgoing.sha256:
        raise HostNotReady(f"the files below {dest} do not have the content sent", host=host)


class _Outgoing:
    """The bytes of one put, and the digest of each file once it has been sent."""

    def __init__(self, files: Sequence[RemoteFile], host: str) -> None:
        self.sha256: Dict[str, str] = {}
        self._host = host
        self._files = [(file, self._size(file)) for file in files]
        self.total_bytes = sum(size for _, size in self._files)

    def chunks(self, receiver: bytes) -> Iterator[bytes]:
        entries = [{"path": f.path, "size": size, "mode": f.mode} for f, size in self._files]
        yield receiver + json.dumps({"files": entries}).encode("ascii") + b"\n"
        for file, size in self._files:
            digest = hashlib.sha256()
            for chunk in self._content(file, size):
                digest.update(chunk)
                yield chunk
            self.sha256[file.path] = digest.hexdigest()
            yield digest.hexdigest().encode("ascii")

    def _content(self, file: RemoteFile, size: int) -> Iterator[bytes]:
        if file.source is None:
            yield file.content or b""
            return
        left = size
        try:
            with open(file.source, "rb") as source:
                while left:
                    chunk = source.read(min(CHUNK, left))
                    if not chunk:
                        raise SpecError(f"{file.source} shrank while it was sent", host=self._host)
                    left -= len(chunk)
                    yield chunk
        except OSError as failure:
            raise self._unreadable(file.source, failure) from failure

    def _size(self, file: RemoteFile) -> int:
        if (file.content is None) == (file.source is None):
            raise ValueError(f"{file.path}: give either content or source")
        if file.source is None:
            return len(file.content or b"")
        try:
            with open(file.source, "rb") as source:
                return os.fstat(source.fileno()).st_size
        except OSError as failure:
            raise self._unreadable(file.source, failure) from failure

    def _unreadable(self, source: Path, failure: OSError) -> OrchError:
        return SpecError(f"cannot read {source} to send it: {failure.strerror}", host=self._host)


def _parse_answer(completed: Completed, *, python: str, host: str) -> Dict[str, Any]:
    """The receiver's answer is the last line: a login script may have printed others before."""
    if completed.exit_status in (126, 127):
        raise HostNotReady(
            f"no usable Python at {python!r}: {_last_line(completed.stderr)}",
            hint="name a Python 3.7 or newer of this host as `python` in the inventory",
            host=host,
        )
    try:
        answer = json.loads(_last_line(completed.stdout))
        if "error" in answer or "sha256" in answer:
            return dict(answer)
    except (ValueError, TypeError):
        pass  # not ours: reported below with what the host said
    said = _last_line(completed.stderr) or _last_line(completed.stdout) or "it said nothing"
    raise HostNotReady(
        f"{python} could not receive the files (exit status {completed.exit_status}): {said}",
        hint="check that this is Python 3.7 or newer and runs on the host",
        host=host,
    )


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
