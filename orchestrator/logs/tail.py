"""Lines of many growing files, in turn, with the name of the file each comes from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Dict, Iterator, Mapping, Optional, Tuple

_CHUNK = 1 << 20


def read_lines(
    files: Mapping[str, Path],
    *,
    follow: bool = False,
    ended: Callable[[], bool] = lambda: True,
    last: Optional[int] = None,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Tuple[str, bytes]]:
    """Yield ``(name, line)`` of every file, lines without their ends.

    ``last`` begins at the last so many lines of each file. With ``follow``, new lines are waited
    for until ``ended()`` is true and everything was read. A file that does not exist yet is
    waited for too. A last line without an end is given once nothing more can come.
    """
    offsets = {name: _start(path, last) for name, path in files.items()}
    rests: Dict[str, bytes] = dict.fromkeys(files, b"")
    while True:
        over = not follow or ended()
        fresh = False
        for name, path in files.items():
            for line in _new_lines(name, path, offsets, rests):
                fresh = True
                yield name, line
        if over and not fresh:
            break
        if not fresh:
            wait(0.1)
    for name, rest in rests.items():
        if rest:
            yield name, rest


def _new_lines(
    name: str, path: Path, offsets: Dict[str, int], rests: Dict[str, bytes]
) -> Iterator[bytes]:
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offsets[name])
        data = stream.read(_CHUNK)
    offsets[name] += len(data)
    *lines, rests[name] = (rests[name] + data).split(b"\n")
    yield from lines


def _start(path: Path, last: Optional[int]) -> int:
    """Offset at which the last ``last`` lines begin (0: the whole file)."""
    if last is None or not path.exists():
        return 0
    data = path.read_bytes()
    end = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(last):
        end = data.rfind(b"\n", 0, max(end, 0))
        if end < 0:
            return 0
    return end + 1
