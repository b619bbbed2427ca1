"""This machine as a host: commands are child processes, no SSH involved."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import threading
from typing import IO, Callable, Iterable, Iterator, List, Optional, Sequence, cast

from orchestrator.errors import HostTimeout, HostUnreachable
from orchestrator.transport.base import Completed, RemoteFile, Stream
from orchestrator.transport.files import put_files
from orchestrator.transport.pipes import (
    CHUNK,
    STDERR_TAIL,
    Collector,
    Feeder,
    ended_with_nothing,
)

_TERM_GRACE_S = 2.0
_EXIT_AFTER_EOF_S = 10.0


class LocalTransport:
    """Transport to this machine. ``python`` is the interpreter that ``put`` uses.

    Each command leads a session of its own: Ctrl-C at the terminal does not reach it, and one
    that takes too long is ended together with its process group.
    """

    def __init__(self, name: str, *, python: str) -> None:
        self.name = name
        self._python = python
        self._lock = threading.Lock()
        self._streams: List[LocalStream] = []
        self._closed = False

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: Optional[float] = 60.0
    ) -> Completed:
        return self._exchange(argv, [stdin], timeout)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout: Optional[float] = None,
        on_output: Callable[[bytes], None],
    ) -> Completed:
        process = self._spawn(argv)
        stdin, stdout, stderr = (_pipe(p) for p in (process.stdin, process.stdout, process.stderr))
        late = threading.Event()

        def end_late() -> None:
            late.set()
            _end(process)

        def write(piece: bytes) -> None:
            stdin.write(piece)
            stdin.flush()

        timer = threading.Timer(timeout or 0.0, end_late)
        try:
            if timeout is not None:
                timer.start()
            errors = Collector(stderr.read1, stderr.close)
            with ended_with_nothing(on_output):
                feeder = Feeder(chunks, write, stdin.close)
                while True:
                    chunk = stdout.read1(CHUNK)
                    if not chunk:
                        break
                    on_output(chunk)
                status = process.wait()
        finally:
            timer.cancel()
            _end(process)
            stdout.close()
        if late.is_set():
            raise HostTimeout(f"`{argv[0]}` has not ended within {timeout:g} s", host=self.name)
        feeder.join()
        errors.join()
        if feeder.error:
            raise feeder.error
        return Completed(_shell_status(status), b"", errors.data)

    def put(self, files: Sequence[RemoteFile], dest: str) -> None:
        put_files(self._exchange, host=self.name, python=self._python, files=files, dest=dest)

    def stream(self, argv: Sequence[str]) -> Stream:
        with self._lock:
            process = self._spawn(argv)
            self._streams = [stream for stream in self._streams if not stream.ended]
            self._streams.append(LocalStream(process))
            return self._streams[-1]

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for stream in self._streams:
            stream.close()

    def _exchange(
        self, argv: Sequence[str], stdin: Iterable[bytes], timeout: Optional[float]
    ) -> Completed:
        process = self._spawn(argv)
        stdin_pipe, process.stdin = _pipe(process.stdin), None  # communicate() shall only read
        feeder = Feeder(stdin, stdin_pipe.write, stdin_pipe.close)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise HostTimeout(
                f"`{argv[0]}` has not ended within {timeout:g} s", host=self.name
            ) from None
        finally:
            _end(process)
            _pipe(process.stdout).close()
            _pipe(process.stderr).close()
        feeder.join()
        if feeder.error:
            raise feeder.error
        return Completed(_shell_status(process.returncode), stdout, stderr)

    def _spawn(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        if self._closed:
            raise HostUnreachable("this connection has been closed here", host=self.name)
        # Through a shell, as sshd does it: a missing program is exit status 127.
        return subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


class LocalStream:
    """Standard output of a running child process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._stdin = _pipe(process.stdin)
        self._stdout = _pipe(process.stdout)
        stderr = _pipe(process.stderr)
        self._errors = Collector(stderr.read1, stderr.close, STDERR_TAIL)
        self._reading = threading.Lock()
        self._ended_by_us = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._reading:
                chunk = b"" if self._stdout.closed else self._stdout.read1(CHUNK)
            if not chunk:
                break
            yield chunk
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_AFTER_EOF_S)
            self.close()

    def close(self) -> None:
        self._ended_by_us |= _end(self._process)
        self._stdin.close()
        # A reader gets its end of file now; only a stray grandchild could hold the pipe open.
        if self._reading.acquire(timeout=_TERM_GRACE_S):
            self._stdout.close()
            self._reading.release()

    @property
    def ended(self) -> bool:
        return self._stdout.closed

    @property
    def exit_status(self) -> Optional[int]:
        status = self._process.poll()
        return None if status is None or self._ended_by_us else _shell_status(status)

    @property
    def stderr(self) -> bytes:
        if self.ended:
            self._errors.join(_TERM_GRACE_S)
        return self._errors.data


def _pipe(pipe: Optional[IO[bytes]]) -> io.BufferedRWPair:
    """The pipe that Popen was asked for, typed."""
    assert pipe is not None
    return cast("io.BufferedRWPair", pipe)


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End the command's process group if it is still running; True when it was."""
    if process.poll() is not None:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_GRACE_S)
            break
    return True


def _shell_status(returncode: int) -> int:
    """As a shell shows it: 128 + the signal's number."""
    return 128 - returncode if returncode < 0 else returncode
