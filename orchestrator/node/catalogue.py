"""What a host holds of a run's checkpoints; sent to its Python over standard input.

    python3 -I -S - COMMAND --run-dir DIR ...

    list --ranks 0,1    one JSON object: files, and the strategy files
    hash FILE...        one JSON line a file, with its SHA-256
    outline FILE...     one JSON line a file, with all of it but content

Standard library only, Python 3.7 and newer. FILE is relative to ``output/checkpoint``. Nothing is
written. An error is ``{"error":{"code","message","hint"}}`` and exit status 4.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
from typing import Any, BinaryIO, Dict, Iterator, List, Sequence, Tuple

CHUNK = 1 << 20
MAX_STRATEGY_BYTES = 256 << 20
HASHING_THREADS = 4
SMALL_CONTENT = 4096  # comes with the outline
OUTLINE_BYTES = 64 << 20
TAIL = 17  # a checksum, if there is one


class CatalogueError(Exception):
    """The folder cannot be read; the message says which and why."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="catalogue.py")
    commands = parser.add_subparsers(dest="command")
    commands.required = True
    listing = commands.add_parser("list")
    listing.add_argument("--run-dir", required=True)
    listing.add_argument("--ranks", required=True)
    hashing = commands.add_parser("hash")
    hashing.add_argument("--run-dir", required=True)
    hashing.add_argument("files", nargs="+")
    outline = commands.add_parser("outline")
    outline.add_argument("--run-dir", required=True)
    outline.add_argument("files", nargs="+")
    options = parser.parse_args(argv)
    output = os.path.join(options.run_dir, "output")
    try:
        if options.command == "list":
            ranks = [int(rank) for rank in options.ranks.split(",")]
            _print(listed(output, ranks))
        elif options.command == "hash":
            print_digests(os.path.join(output, "checkpoint"), options.files)
        else:
            for name in options.files:
                path = os.path.join(output, "checkpoint", name)
                _print(dict(outlined(path), file=name))
    except CatalogueError as error:
        _print({"error": {"code": "catalogue", "message": str(error), "hint": ""}})
        return 4
    return 0


def listed(output: str, ranks: Sequence[int]) -> Dict[str, Any]:
    """Files of the given ranks, and the strategy files with their content (each once)."""
    files = []
    for rank in ranks:
        folder = os.path.join(output, "checkpoint", "rank_%d" % rank)
        for entry in _files(folder):
            status = entry.stat()
            files.append(
                {
                    "rank": rank,
                    "name": entry.name,
                    "size": status.st_size,
                    "mtime_ns": status.st_mtime_ns,
                }
            )
    strategy = []
    contents = {}
    for entry in _files(os.path.join(output, "strategy")):
        if entry.name.startswith(".") or not entry.name.endswith((".ckpt", ".json")):
            continue
        if entry.stat().st_size > MAX_STRATEGY_BYTES:
            raise CatalogueError("%s is too large for a strategy file" % entry.path)
        with _opened(entry.path) as file:
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        strategy.append({"name": entry.name, "sha256": digest})
        contents[digest] = base64.b64encode(content).decode("ascii")
    return {"schema": 1, "files": files, "strategy": strategy, "contents": contents}


def print_digests(folder: str, names: Sequence[str]) -> None:
    """Print ``{"file","size","mtime_ns","sha256"}`` for each file, in the order given."""
    # Imported where needed: a listing starts sooner without.
    from concurrent.futures import ThreadPoolExecutor

    paths = [os.path.join(folder, name) for name in names]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:  # hashlib runs without the GIL
        for name, answer in zip(names, pool.map(digest, paths)):
            _print(dict(answer, file=name))


def digest(path: str) -> Dict[str, Any]:
    """Size, time of change and SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with _opened(path) as file:
        status = os.fstat(file.fileno())
        for chunk in iter(lambda: file.read(CHUNK), b""):
            sha256.update(chunk)
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": sha256.hexdigest(),
    }


def outlined(path: str) -> Dict[str, Any]:
    """Size, time of change, and ``[offset, bytes in base64]`` of all that is not content of
    tensors. Where the file makes no sense, 8 KiB from there are the last: the reader will say so.
    """
    with _opened(path) as file:
        descriptor = file.fileno()
        status = os.fstat(descriptor)
        pieces = []
        left = OUTLINE_BYTES
        for offset, length in _outline(descriptor, path, status.st_size):
            length = min(length, left)
            data = os.pread(descriptor, length, offset)
            left -= len(data)
            if data:
                pieces.append([offset, base64.b64encode(data).decode("ascii")])
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "pieces": pieces}


def _outline(descriptor: int, path: str, size: int) -> Iterator[Tuple[int, int]]:
    if path.endswith(".safetensors"):
        yield 0, 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        return
    offset = 0
    while offset < size:
        try:
            end, content, length = _record(descriptor, offset)
        except IndexError:
            break
        inside = content - offset + (length if length <= SMALL_CONTENT else 0)
        yield offset, inside
        if length > SMALL_CONTENT and content + length < end:
            yield content + length, min(end - content - length, SMALL_CONTENT)
        offset = end
    yield offset, 8 << 10
    yield max(0, size - TAIL), TAIL


def _record(descriptor: int, start: int) -> Tuple[int, int, int]:
    """End of the record at ``start``, and offset and length of its content; IndexError where
    there is none. See ``checkpoints/mindspore_ckpt.py`` for the format."""
    for window in (512, 40 << 10):
        data = os.pread(descriptor, window, start)
        try:
            at = _expect(data, 0, 0x0A)
            length, at = _varint(data, at)
            end = start + at + length
            at = _expect(data, at, 0x0A)
            length, at = _varint(data, at)
            at = _expect(data, at + length, 0x12)
            _, at = _varint(data, at)
            while data[at] != 0x1A:
                key = data[at]
                length, at = _varint(data, at + 1)
                if key in (0x0A, 0x12):
                    at += length
                elif key != 0x08:
                    raise ValueError
            length, at = _varint(data, at + 1)
            if start + at + length > end:
                raise ValueError
            return end, start + at, length
        except ValueError:
            break
        except IndexError:
            continue  # a longer header than most
    raise IndexError


def _expect(data: bytes, at: int, key: int) -> int:
    if data[at] != key:
        raise ValueError
    return at + 1


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError


def _files(folder: str) -> List[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CatalogueError("cannot read %s: %s" % (folder, error.strerror)) from None
    return sorted(found, key=lambda entry: entry.name)


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise CatalogueError("cannot read %s: %s" % (path, error.strerror)) from None


def _print(answer: Dict[str, Any]) -> None:
    # ASCII only, so that no locale of the host can get in the way.
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
