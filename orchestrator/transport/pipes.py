"""Threads that keep a command's pipes moving, so that neither side waits for the other."""

from __future__ import annotations

import contextlib
import threading
from typing import Callable, Iterable, Iterator, Optional

CHUNK = 1 << 16
PIECE = 1 << 15
"""What fits into one SSH packet: paramiko copies the rest of a longer piece for each packet."""
STDERR_TAIL = 8192


class Feeder(threading.Thread):
    """Writes ``chunks`` to a command's standard input, then closes it.

    A command may end without reading everything (``write`` raises OSError): its answer says why.
    An error of the source of the chunks is kept in ``error`` for the thread that waits.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        write: Callable[[bytes], object],
        close: Callable[[], None],
    ) -> None:
        super().__init__(daemon=True, name="feeder")
        self.error: Optional[Exception] = None
        self._chunks = chunks
        self._write = write
        self._close = close
        self.start()

    def run(self) -> None:
        try:
            for piece in _pieces(self._chunks):
                try:
                    self._write(piece)
                except OSError:
                    break
        except Exception as error:  # raised again by the thread that waits
            self.error = error
        with contextlib.suppress(OSError):
            self._close()


class Collector(threading.Thread):
    """Reads a pipe to its end, closes it, and keeps its last ``limit`` bytes (None: all)."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        close: Callable[[], None] = lambda: None,
        limit: Optional[int] = None,
    ) -> None:
        super().__init__(daemon=True, name="collector")
        self._read = read
        self._close = close
        self._limit = limit
        self._kept = bytearray()
        self.start()

    def run(self) -> None:
        while True:
            chunk = self._read(CHUNK)
            if not chunk:
                self._close()
                return
            self._kept += chunk
            if self._limit is not None and len(self._kept) > self._limit:
                del self._kept[: -self._limit]

    @property
    def data(self) -> bytes:
        return bytes(self._kept)


@contextlib.contextmanager
def ended_with_nothing(on_output: Optional[Callable[[bytes], None]]) -> Iterator[None]:
    """Whatever happens in the block, ``on_output`` is told that no more will come."""
    try:
        yield
    finally:
        if on_output is not None:
            on_output(b"")


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), PIECE):
            yield chunk[start : start + PIECE]
