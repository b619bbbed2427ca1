"""What hosts answer to a collector is not believed."""

from __future__ import annotations

import json
from typing import Any, Iterator, NamedTuple, Sequence

import pytest

from orchestrator.engine.collect import collect
from orchestrator.errors import CheckpointError, HostNotReady
from orchestrator.transport.base import Completed, Stream
from tests.unit.engine.hosts import Cluster, Request


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b-1_4.ckpt", "x\x1b[2J-1_4.ckpt", "", "..", "n" * 201, 7]
)
def test_a_hostile_file_name_is_refused(cluster: Cluster, name: object) -> None:
    listing = {
        "schema": 1,
        "files": [{"rank": 0, "name": name, "size": 1, "mtime_ns": 1}],
        "strategy": [],
        "contents": {},
    }
    answer = Completed(0, json.dumps(listing).encode() + b"\n", b"")
    cluster.transports[0].on_run = lambda argv: answer
    with pytest.raises(CheckpointError, match=r"node0: the host lists a file named .* refused"):
        collect(cluster.sources, out=cluster.out)


@pytest.mark.parametrize(
    "stdout",
    [
        *(b"", b"{", b"[]", b"null\n"),
        b'{"files":[{}],"strategy":[]}',
        b'{"files":3,"strategy":[]}',
        b'{"files":[{"rank":2,"name":"g-1_4.ckpt","size":-1,"mtime_ns":1}],"strategy":[]}',
    ],
)
def test_an_answer_that_makes_no_sense(cluster: Cluster, stdout: bytes) -> None:
    cluster.transports[1].on_run = lambda argv: Completed(0, stdout, b"")
    with pytest.raises(HostNotReady, match=r"node1: the catalogue"):
        collect(cluster.sources, out=cluster.out)


class Said(NamedTuple):
    """A stream of a command that says just this and ends."""

    chunks: Sequence[bytes]
    exit_status: int = 0
    stderr: bytes = b""

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]
        return iter(self.chunks)

    def close(self) -> None:
        """Nothing runs."""


BEGIN = b"motd\nglm2-orch sends\n"


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (Said([]), HostNotReady, "did not send what was asked for: it ended with status 0"),
        (Said([b"x" * 70_000]), HostNotReady, "login prints text without end"),
        (Said([BEGIN, b"short"]), HostNotReady, "did not send what was asked for"),
        (Said([BEGIN], 1, b"MemoryError"), HostNotReady, "asked for: MemoryError"),
        (Said([BEGIN, b"x" * 60_000, b"no digest"]), HostNotReady, "digest"),
        (Said([], 127, b"sh: not found"), HostNotReady, "cannot be run"),
        (Said([BEGIN], 4, b'{"error":{"message":"x is gone"}}'), CheckpointError, "x is gone"),
        (Said([BEGIN], 4, b'{"error":[]}'), HostNotReady, "asked for: {"),
    ],
)
def test_a_sender_that_makes_no_sense(cluster: Cluster, said: Any, error: type, words: str) -> None:
    def reply(_: Request, stream: Stream) -> Stream:
        stream.close()
        return said  # type: ignore[no-any-return]

    cluster.transports[1].on_stream = reply
    with pytest.raises(error, match=r"node1: .*") as caught:
        collect(cluster.sources, out=cluster.out)
    assert words in str(caught.value)
    assert not (cluster.out / "COMPLETE").exists()


def test_a_host_without_python(cluster: Cluster) -> None:
    cluster.transports[1].on_run = lambda argv: Completed(127, b"", b"not found")
    with pytest.raises(HostNotReady, match=r"node1: .* cannot be run"):
        collect(cluster.sources, out=cluster.out)
