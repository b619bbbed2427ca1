"""Sends parts of a run's checkpoint files on standard output, each with its digests.

    python3 -c BOOT PROGRAM REQUEST     both zlib in base64, so that nothing is left on the host

REQUEST: ``{"folder","parts":[{"file","size","mtime_ns","skip","ranges":[[offset,length],…]}]}``,
``file`` relative to ``folder``. Answer: the line ``glm2-orch sends``, then for each part the bytes
of its ranges, without the first ``skip`` of them, and the line ``{"sha256","crc32"}``: the digests
of all ranges, those skipped too. Each byte is read once. The CRC is for whoever receives it and
finds SHA-256 too slow.

A file that is not as the request says, or cannot be read, ends the answer: status 4, and one line
``{"error":{"code","message","hint"}}`` on standard error. Standard library, Python 3.7 and newer.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import sys
import zlib
from typing import Any, Dict, Tuple, Union

CHUNK = 1 << 18  # what stays in a core's cache until it is hashed and sent
F_SETPIPE_SZ = 1031  # Linux; in Python from 3.10 on
PIPE_BYTES = 1 << 20  # fewer changes between this process and the one that encrypts
BEGIN = b"glm2-orch sends\n"


class SendError(Exception):
    """The file is not what was asked for; the message says how."""


def main() -> int:
    request = json.loads(zlib.decompress(base64.b64decode(sys.argv[2])).decode("utf-8"))
    with contextlib.suppress(OSError):  # no pipe, or more than the system allows
        fcntl.fcntl(1, F_SETPIPE_SZ, PIPE_BYTES)
    try:
        _write(BEGIN)
        for part in request["parts"]:
            sha256, crc32 = send(request["folder"], part)
            answer = {"sha256": sha256, "crc32": crc32}
            _write(json.dumps(answer).encode("ascii") + b"\n")
    except SendError as error:
        problem = {"code": "send", "message": str(error), "hint": "collect again"}
        sys.stderr.write(json.dumps({"error": problem}) + "\n")
        return 4
    except BrokenPipeError:
        return 1  # nobody listens any more
    return 0


def send(folder: str, part: Dict[str, Any]) -> Tuple[str, int]:
    """Write the ranges of one part; SHA-256 and CRC32 of them all."""
    path = os.path.join(folder, part["file"])
    sha256, crc32 = hashlib.sha256(), 0
    skip = part["skip"]
    buffer = memoryview(bytearray(CHUNK))
    try:
        with open(path, "rb", buffering=0) as file:
            _check_unchanged(path, file.fileno(), part)
            for offset, length in part["ranges"]:
                file.seek(offset)
                while length:
                    data = buffer[: file.readinto(buffer[: min(CHUNK, length)])]
                    if not data:
                        raise SendError("%s shrank while it was sent" % path)
                    length -= len(data)
                    sha256.update(data)
                    crc32 = zlib.crc32(data, crc32)
                    skipped = min(skip, len(data))
                    skip -= skipped
                    _write(data[skipped:] if skipped else data)
            _check_unchanged(path, file.fileno(), part)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SendError("cannot read %s: %s" % (path, error.strerror)) from None
    return sha256.hexdigest(), crc32


def _check_unchanged(path: str, descriptor: int, part: Dict[str, Any]) -> None:
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (part["size"], part["mtime_ns"]):
        raise SendError("%s has changed since it was listed" % path)


def _write(data: Union[bytes, memoryview]) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main())
