"""The stream of a run: complete, resumable, and gone with its reader."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.node import streaming
from orchestrator.node.folder import RunFolder
from orchestrator.node.spec import load
from tests.cluster.node.host import Frames, Host, assemble, sh, wait_until

FOREVER = sh("exec sleep 600")


@pytest.fixture
def frames() -> Iterator[Callable[..., Frames]]:
    streams: List[Frames] = []

    def follow(host: Host, *options: str) -> Frames:
        streams.append(Frames(host, *options))
        return streams[-1]

    yield follow
    for stream in streams:
        stream.close()


def on_disk(host: Host) -> Dict[str, bytes]:
    names = [f"ranks/{p.name}/{f}" for p in (host.run_dir / "ranks").iterdir() for f in FILES]
    return {name: (host.run_dir / name).read_bytes() for name in names if size(host, name)}


FILES = ("stdout.log", "metrics.jsonl")


def size(host: Host, name: str) -> int:
    path = host.run_dir / name
    return path.stat().st_size if path.exists() else 0


def test_everything_arrives_once(
    new_host: Callable[..., Host], frames: Callable[..., Frames], any_python: str
) -> None:
    host = new_host(any_python)
    host.ship(
        sh("cd ranks/rank_0; for i in {1..50}; do echo 第 $i 步; echo '{}' >> metrics.jsonl; done"),
        sh("head -c 3000000 /dev/urandom; printf 'no line end'"),
        sh(r"printf '\xff\xfe bad \xe4\xbd'; sleep 0.15; printf '\xa0 ok\n\0'"),
    )
    host.do("arm")
    stream = frames(host)
    received = stream.read(2)
    assert [frame["t"] for frame in received] == ["event", "beat"]
    assert received[1]["supervisor"]["state"] == "armed"
    host.do("start")
    received += stream.read()
    host.wait_finished()
    assert received[-1] == {"t": "end"}
    files = assemble(received)
    assert files == on_disk(host)
    assert files["ranks/rank_2/stdout.log"] == b"\xff\xfe bad \xe4\xbd\xa0 ok\n\0"
    assert len(files["ranks/rank_1/stdout.log"]) == 3_000_011
    events = [frame["event"] for frame in received if frame["t"] == "event"]
    assert events == host.events()
    offsets = [frame["off"] for frame in received if frame["t"] == "event"]
    assert offsets[-1] == (host.run_dir / "journal.jsonl").stat().st_size


def test_a_cut_stream_is_resumed_without_a_gap_or_a_double(
    host: Host, frames: Callable[..., Frames]
) -> None:
    write = "for i in {1..200}; do echo $i; sleep 0.005; done"
    host.launch(sh(write), sh(write))
    files: Dict[str, bytes] = {}
    events: List[Any] = []
    end = 0
    while not events or events[-1]["event"] != "finished":
        offsets = "{" + ",".join(f'"{name}":{len(data)}' for name, data in files.items()) + "}"
        stream = frames(host, "--journal", str(end), "--offsets", offsets)
        received = stream.read(5)
        stream.process.kill()
        assemble(received, files)
        for frame in received:
            if frame["t"] == "event":
                events.append(frame["event"])
                end = frame["off"]
    last = frames(
        host,
        *("--journal", str(end)),
        *("--offsets", str({n: len(d) for n, d in files.items()}).replace("'", '"')),
    ).read()
    assemble(last, files)
    host.wait_finished()
    assert files == on_disk(host)
    assert events == host.events()


class Silent(streaming.Output):
    """A reader that is always there and never waits."""

    def __init__(self) -> None:
        return

    def wait(self, seconds: float) -> None:
        return


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Host, List[Any]]:
    """A run that has ended, and all its frames."""
    host = Host(sys.executable, tmp_path_factory.mktemp("stream"), "finished-run")
    host.launch(
        sh("for i in {1..20}; do echo 好 $i; echo '{}' >> ranks/rank_0/metrics.jsonl; done"),
        sh("head -c 700000 /dev/urandom"),
    )
    host.wait_finished()
    return host, frames_of(host, 0, {})


def frames_of(host: Host, journal: int, offsets: Dict[str, int]) -> List[Any]:
    folder = RunFolder(str(host.run_dir))
    spec = load(folder.spec)
    tails = [
        streaming.Tail(folder.path, name, offsets.get(name, 0))
        for name in streaming.file_names(spec)
    ]
    return list(streaming.frames(folder, spec, journal, tails, Silent()))


@given(data=st.data())
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_frames_from_any_offsets_are_the_rest(
    finished: Tuple[Host, List[Any]], data: st.DataObject
) -> None:
    host, whole = finished
    files = assemble(whole)
    assert set(files) == set(on_disk(host))
    cuts = {name: data.draw(st.integers(0, len(all_)), name) for name, all_ in files.items()}
    ends = [0] + [frame["off"] for frame in whole if frame["t"] == "event"]
    cut = data.draw(st.sampled_from(ends), "journal")
    rest = frames_of(host, cut, cuts)
    assert assemble(rest, {n: files[n][: cuts[n]] for n in files}) == files
    assert [f for f in rest if f["t"] == "event"] == [
        f for f in whole if f["t"] == "event" and f["off"] > cut
    ]
    assert rest[-1] == {"t": "end"}


def test_files_take_turns(finished: Tuple[Host, List[Any]]) -> None:
    """The small file of one rank does not wait for the large one of another."""
    _, whole = finished
    order = [frame["file"] for frame in whole if frame["t"] == "data"]
    large = "ranks/rank_1/stdout.log"
    assert order.count(large) == 3
    assert set(order[: order.index(large) + 1]) == {
        "ranks/rank_0/stdout.log",
        "ranks/rank_0/metrics.jsonl",
        large,
    }
    assert max(len(frame.get("data", "")) for frame in whole) <= streaming.CHUNK


def test_a_lost_run_says_so_and_ends(host: Host, frames: Callable[..., Frames]) -> None:
    host.launch(sh("echo before; exec sleep 600"))
    host.wait_file("ranks/rank_0/stdout.log")
    stream = frames(host)
    stream.read(1)
    os.kill(host.pids[0], signal.SIGKILL)
    received = stream.read()
    assert [frame["t"] for frame in received[-2:]] == ["lost", "end"]
    assert [f["t"] for f in frames(host).read()][-2:] == ["lost", "end"]
    host.do("sweep")


def test_beats_come_while_nothing_happens(host: Host, frames: Callable[..., Frames]) -> None:
    host.launch(FOREVER)
    received = frames(host).read(8)  # three events, then silence
    assert [frame["t"] for frame in received[3:]] == ["beat"] * 5
    host.do("stop")


@pytest.mark.parametrize("end", ["stdout", "stdin"])
def test_it_ends_when_its_reader_is_gone(
    host: Host, frames: Callable[..., Frames], end: str
) -> None:
    """Without a heartbeat that could fail: the end of the pipe itself is noticed."""
    host.launch(FOREVER, heartbeat_s=600)
    stream = frames(host)
    stream.read(3)
    getattr(stream.process, end).close()
    assert stream.process.wait(timeout=30) == 0
    assert host.do("status")["state"] == "running"
    host.do("stop")


def test_it_ends_while_its_reader_does_not_read(host: Host, frames: Callable[..., Frames]) -> None:
    """Blocked in the middle of a burst by a reader that then hangs up its input."""
    host.launch(sh("head -c 4000000 /dev/zero; exec sleep 600"))
    wait_until(lambda: size(host, "ranks/rank_0/stdout.log") == 4_000_000, "the burst")
    stream = frames(host)
    stream.read(3)
    assert stream.process.stdin is not None
    stream.process.stdin.close()
    assert stream.process.wait(timeout=30) == 0
    host.do("stop")


def test_what_cannot_be_streamed(host: Host) -> None:
    host.ship(FOREVER)
    status, answer = host.ask("stream")
    assert (status, answer["error"]["code"]) == (4, "host-not-ready")
    status, answer = host.ask("stream", "--offsets", '{"../../etc/passwd":0}')
    assert (status, answer["error"]["code"]) == (2, "usage")
