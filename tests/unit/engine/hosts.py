"""Hosts that are folders of this machine, holding a checkpoint set, with faults on the way."""

from __future__ import annotations

import base64
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.layout import Layout
from orchestrator.engine.catalogue import Source
from orchestrator.errors import HostUnreachable
from orchestrator.transport.base import Completed, Stream
from orchestrator.transport.local import LocalTransport
from tests.unit.checkpoints.sets import Whole, split, whole, write_set

MODEL = {"w": whole("Float16", (64, 32), 1), "norm": whole("Float32", (32,), 2)}
TWO_COPIES = {"w": split((2, 2), -1, 0), "norm": split((2, 2), -1)}
"""Each host of two ranks holds one whole copy, its ranks half of it each."""
ONE_COPY = {"w": split((2, 2), 1, 0), "norm": split((2, 2), -1)}
"""All four ranks are needed; ``norm`` is in each."""

Request = Dict[str, Any]


class Bent:
    """A stream with something done to it: cut after ``most`` bytes, or each chunk changed."""

    def __init__(
        self,
        stream: Stream,
        *,
        most: Optional[int] = None,
        change: Callable[[bytes], bytes] = lambda chunk: chunk,
    ) -> None:
        self._stream = stream
        self._most = most
        self._change = change

    def __iter__(self) -> Iterator[bytes]:
        left = self._most
        for chunk in self._stream:
            if left is not None:
                if left < len(chunk):
                    if left:
                        yield chunk[:left]
                    raise HostUnreachable("connection lost", host="node")
                left -= len(chunk)
            yield self._change(chunk)

    def close(self) -> None:
        self._stream.close()

    @property
    def exit_status(self) -> Optional[int]:
        return self._stream.exit_status

    @property
    def stderr(self) -> bytes:
        return self._stream.stderr


class Faulty(LocalTransport):
    """A local transport on which things can be made to go wrong."""

    def __init__(self, name: str) -> None:
        super().__init__(name, python=sys.executable)
        self.sent: List[Tuple[str, int]] = []
        """Files asked for, and how many of their bytes were here already."""
        self.before_stream: Callable[[Request], None] = lambda _: None
        self.on_stream: Callable[[Request, Stream], Stream] = lambda _, stream: stream
        self.on_run: Callable[[Sequence[str]], Optional[Completed]] = lambda argv: None

    def stream(self, argv: Sequence[str]) -> Stream:
        request: Request = json.loads(zlib.decompress(base64.b64decode(argv[-1])))
        self.sent += [(part["file"].split("/")[-1], part["skip"]) for part in request["parts"]]
        self.before_stream(request)
        return self.on_stream(request, super().stream(argv))

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: Optional[float] = 60.0
    ) -> Completed:
        return self.on_run(argv) or super().run(argv, stdin=stdin, timeout=timeout)


class Cluster:
    """Hosts with two ranks each; the set of step 1_4 lies cut over their folders."""

    def __init__(
        self,
        root: Path,
        layouts: Optional[Mapping[str, Layout]] = None,
        *,
        model: Mapping[str, Whole] = MODEL,
        stages: Sequence[Mapping[str, Layout]] = (),
        crc: bool = False,
    ) -> None:
        self.root = root
        self.stages = stages or [layouts or TWO_COPIES]
        self.out = root / "out"
        self.ranks = len(self.stages) * next(iter(self.stages[0].values())).ranks
        self.transports = [Faulty(f"node{i}") for i in range(self.ranks // 2)]
        self.crc = crc
        self.save("1_4", model)

    @property
    def sources(self) -> List[Source]:
        return [
            Source(transport, sys.executable, str(self.root / transport.name), (2 * i, 2 * i + 1))
            for i, transport in enumerate(self.transports)
        ]

    def save(self, step: str, model: Mapping[str, Whole]) -> None:
        made = write_set(self.root / "all", model, self.stages, step=step, crc=self.crc)
        for rank in range(self.ranks):
            here = self.file(rank, step)
            here.parent.mkdir(parents=True, exist_ok=True)
            made.file(rank, step).replace(here)
            strategy = self.host(rank) / "output" / "strategy"
            strategy.mkdir(exist_ok=True)
            name = f"ckpt_strategy_rank_{rank}.ckpt"
            (made.strategy / name).replace(strategy / name)

    def without_strategy(self) -> None:
        for path in self.root.glob("node*/output/strategy/*"):
            path.unlink()

    def host(self, rank: int) -> Path:
        return self.root / f"node{rank // 2}"

    def file(self, rank: int, step: str = "1_4") -> Path:
        folder = self.host(rank) / "output" / "checkpoint" / f"rank_{rank}"
        return folder / f"glm2_rank_{rank}-{step}.ckpt"

    def copy(self, rank: int, step: str = "1_4") -> Path:
        """Where a rank's file is when it has been collected."""
        return self.out / "checkpoint" / f"rank_{rank}" / self.file(rank, step).name

    def sent(self) -> List[Tuple[str, int]]:
        return [sent for transport in self.transports for sent in transport.sent]

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


def change_a_bit(path: Path, offset: int) -> None:
    """Flip a bit of a file behind everybody's back: its time of change stays."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
