"""Talks to the supervisor of one host: the client side of ``docs/contracts.md``, part 3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Tuple, Type

from orchestrator.errors import Busy, Fenced, HostNotReady, OrchError, PortTaken, SpecError
from orchestrator.transport.base import Stream, Transport

Answer = Dict[str, Any]


@dataclass(frozen=True)
class Supervisor:
    """The supervisor of a run on one host, reached through its transport."""

    transport: Transport
    python: str
    run_dir: str
    caller: Tuple[str, ...] = ()
    """``--epoch`` and ``--owner`` of the controller that speaks, or that it speaks for."""

    @property
    def host(self) -> str:
        return self.transport.name

    def arm(self) -> Answer:
        """End what earlier runs left there (``swept``), take the locks and wait for ``start``.
        Raises Busy when another run holds a device."""
        return self._ask("arm", timeout=60)

    def start(self) -> Answer:
        return self._ask("start", timeout=60)

    def claim(self) -> Answer:
        """Become the controller of the run there. Raises Fenced when another is newer."""
        return self._ask("claim", timeout=60)

    def status(self) -> Answer:
        return self._ask("status", timeout=30)

    def stacks(self) -> Answer:
        """Where each process stands now: ``{"stacks": [{"name","rank","source","text"}]}``."""
        return self._ask("stacks", timeout=30)

    def stop(self, reason: str, *, grace_s: float = 10.0) -> Answer:
        """End the run here and return the certificate: ``{"clean": bool, "left": [...]}``."""
        options = ["--grace", str(grace_s), "--reason", reason]
        return self._ask("stop", *options, timeout=grace_s + 60)

    def sweep(self) -> Answer:
        """End what a dead supervisor left behind; returns a certificate as ``stop`` does."""
        return self._ask("sweep", timeout=60)

    def frames(self, journal_offset: int, offsets: Mapping[str, int]) -> FrameStream:
        """The run's frames from the given byte offsets on."""
        options = ["--journal", str(journal_offset), "--offsets", json.dumps(dict(offsets))]
        return FrameStream(self.transport.stream(self._argv("stream", *options)))

    def _argv(self, command: str, *options: str) -> List[str]:
        program = f"{self.run_dir}/node/supervisor.py"
        # Without site-packages, which it does not need: it starts in half the time.
        return [
            self.python,
            "-S",
            program,
            command,
            "--run-dir",
            self.run_dir,
            *self.caller,
            *options,
        ]

    def _ask(self, command: str, *options: str, timeout: float) -> Answer:
        done = self.transport.run(self._argv(command, *options), timeout=timeout)
        answer = last_object(done.stdout)
        if isinstance(answer, dict) and "error" not in answer:
            return answer
        raise self._error(command, answer, done.exit_status, done.stderr)

    def _error(self, command: str, answer: Any, status: int, stderr: bytes) -> OrchError:
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict):
            tail = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            return HostNotReady(
                f"the supervisor's {command} ended with status {status}: {tail[0]}",
                host=self.host,
                hint=f"try by hand on {self.host}: {' '.join(self._argv(command))}",
            )
        kind: Type[OrchError] = {9: Busy, 3: SpecError}.get(status, HostNotReady)
        for narrower in (Fenced, PortTaken):
            if error.get("code") == narrower.code:
                kind = narrower
        return kind(str(error.get("message")), hint=str(error.get("hint", "")), host=self.host)


def last_object(output: bytes) -> Any:
    """The object on the last line: what a login script prints comes before it."""
    lines = output.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def _object(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # what a login script printed
        return None


class FrameStream:
    """Iterates over the frames of a stream, those together that came together; ``close`` from
    another thread ends it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[List[Answer]]:
        rest = b""
        for chunk in self._stream:
            *lines, rest = (rest + chunk).split(b"\n")
            frames = [_object(line) for line in lines]
            yield [
                frame
                for frame in frames
                if isinstance(frame, dict) and ("t" in frame or "error" in frame)
            ]

    def close(self) -> None:
        self._stream.close()
