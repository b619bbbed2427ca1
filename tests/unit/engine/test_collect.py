"""Collecting from hosts that are folders of this machine, with faults between here and there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import pytest

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.engine.collect import Source, collect
from orchestrator.errors import (
    Busy,
    CheckpointError,
    HostNotReady,
    HostUnreachable,
    OrchError,
)
from orchestrator.transport.base import Completed
from orchestrator.transport.local import LocalTransport
from tests.unit.checkpoints.sets import Whole, split, whole, write_set

MODEL = {"w": whole("Float16", (64, 32), 1), "norm": whole("Float32", (32,), 2)}
TWO_COPIES = {"w": split((2, 2), -1, 0), "norm": split((2, 2), -1)}
"""Each host holds one whole copy, its two ranks half of it each."""
ONE_COPY = {"w": split((2, 2), 1, 0), "norm": split((2, 2), -1)}


class Faulty(LocalTransport):
    """A local transport on which things can be made to go wrong."""

    def __init__(self, name: str) -> None:
        super().__init__(name, python=sys.executable)
        self.got: List[Sequence[object]] = []
        self.on_get: Callable[[str, Path, int], Optional[int]] = lambda *_: None
        self.on_run: Callable[[Sequence[str]], Optional[Completed]] = lambda argv: None

    def get(self, path: str, dest: Path, *, offset: int = 0) -> int:
        self.got.append((Path(path).name, offset))
        faked = self.on_get(path, dest, offset)
        return super().get(path, dest, offset=offset) if faked is None else faked

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: Optional[float] = 60.0
    ) -> Completed:
        return self.on_run(argv) or super().run(argv, stdin=stdin, timeout=timeout)


class Cluster:
    """Two hosts with two ranks each; the set of step 1_4 lies cut over their folders."""

    def __init__(self, root: Path, layouts: Optional[Dict[str, Layout]] = None) -> None:
        self.root = root
        self.layouts = layouts or TWO_COPIES
        self.out = root / "out"
        self.transports = [Faulty("node0"), Faulty("node1")]
        self.save("1_4", MODEL)

    @property
    def sources(self) -> List[Source]:
        return [
            Source(transport, sys.executable, str(self.root / transport.name), (2 * i, 2 * i + 1))
            for i, transport in enumerate(self.transports)
        ]

    def save(self, step: str, model: Dict[str, Whole]) -> None:
        made = write_set(self.root / "all", model, [self.layouts], step=step)
        for rank in range(4):
            here = self.file(rank, step)
            here.parent.mkdir(parents=True, exist_ok=True)
            made.file(rank, step).replace(here)
            strategy = self.host(rank) / "output" / "strategy"
            strategy.mkdir(exist_ok=True)
            name = f"ckpt_strategy_rank_{rank}.ckpt"
            (made.strategy / name).replace(strategy / name)

    def host(self, rank: int) -> Path:
        return self.root / f"node{rank // 2}"

    def file(self, rank: int, step: str = "1_4") -> Path:
        folder = self.host(rank) / "output" / "checkpoint" / f"rank_{rank}"
        return folder / f"glm2_rank_{rank}-{step}.ckpt"

    def got(self) -> List[Sequence[object]]:
        return [get for transport in self.transports for get in transport.got]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for transport in made.transports:
        transport.close()


def assert_collected(cluster: Cluster, model: Dict[str, Whole], step: str) -> None:
    for rank in range(4):
        name = f"rank_{rank}/glm2_rank_{rank}-{step}.ckpt"
        assert (cluster.out / "checkpoint" / name).read_bytes() == cluster.file(
            rank, step
        ).read_bytes()
    assert step in json.loads((cluster.out / "COMPLETE").read_text())["steps"]
    assert not (cluster.out / ".incoming").exists()
    merged = merge(cluster.out / "checkpoint", cluster.out / "strategy", cluster.root / "m.ckpt")
    data = merged.output.read_bytes()
    assert all(tensor.values.tobytes() in data for tensor in model.values())


def test_all_files_arrive_verified_with_a_manifest(cluster: Cluster) -> None:
    calls: List[Sequence[int]] = []
    report = collect(cluster.sources, out=cluster.out, progress=lambda *call: calls.append(call))

    assert_collected(cluster, MODEL, "1_4")
    assert (report.step, report.ranks, report.fetched) == ("1_4", (0, 1, 2, 3), 4)
    files = json.loads((cluster.out / "manifest.json").read_text())["steps"]["1_4"]["files"]
    assert [file["host"] for file in files] == ["node0", "node0", "node1", "node1"]
    assert calls[0] == (0, report.nbytes)
    assert calls[-1] == (report.nbytes, report.nbytes)


def test_what_is_here_is_not_fetched_again(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    before = len(cluster.got())
    report = collect(cluster.sources, out=cluster.out)
    assert report.fetched == 0
    assert len(cluster.got()) == before


def test_a_later_step_is_added_and_the_older_one_stays(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    newer = {"w": whole("Float16", (64, 32), 8), "norm": MODEL["norm"]}
    cluster.save("1_10", newer)
    assert collect(cluster.sources, out=cluster.out).step == "1_10"
    assert_collected(cluster, newer, "1_10")
    assert json.loads((cluster.out / "COMPLETE").read_text())["steps"] == ["1_4", "1_10"]


def test_latest_is_the_last_step_that_is_complete(cluster: Cluster) -> None:
    cluster.save("1_10", MODEL)
    cluster.file(1, "1_10").unlink()
    report = collect(cluster.sources, out=cluster.out)
    assert report.step == "1_4"
    assert "step 1_10 is incomplete: no file of rank 1" in report.notes


def test_a_step_that_does_not_exist(cluster: Cluster) -> None:
    with pytest.raises(CheckpointError, match="no rank has step 7; found: 1_4"):
        collect(cluster.sources, out=cluster.out, step="7")


def test_a_cut_transfer_goes_on_at_its_offset(cluster: Cluster) -> None:
    cut = cluster.file(3).name

    def cut_once(path: str, dest: Path, offset: int) -> Optional[int]:
        if path.endswith(cut) and offset == 0:
            dest.write_bytes(Path(path).read_bytes()[:700])
            raise HostUnreachable("connection lost", host="node1")
        return None

    cluster.transports[1].on_get = cut_once
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    assert (cut, 700) in cluster.got()


def test_a_later_attempt_goes_on_where_the_first_one_died(cluster: Cluster) -> None:
    def die(path: str, dest: Path, offset: int) -> Optional[int]:
        dest.write_bytes(Path(path).read_bytes()[:600])
        raise KeyboardInterrupt

    cluster.transports[1].on_get = die
    with pytest.raises(KeyboardInterrupt):
        collect(cluster.sources, out=cluster.out)
    assert not (cluster.out / "COMPLETE").exists()
    assert not (cluster.out / "checkpoint").exists()

    cluster.transports[1].on_get = lambda *_: None
    cluster.transports[0].got.clear()
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    assert cluster.transports[0].got == []  # whole already
    assert (cluster.file(2).name, 600) in cluster.got()


def test_the_rest_of_a_file_since_replaced_is_noticed(cluster: Cluster) -> None:
    part = cluster.out / ".incoming" / "rank_0" / (cluster.file(0).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"bytes of another time")
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")


def test_damage_on_the_wire_is_never_accepted(cluster: Cluster) -> None:
    def damaged(path: str, dest: Path, offset: int) -> Optional[int]:
        data = bytearray(Path(path).read_bytes())
        data[-1] ^= 1
        dest.write_bytes(data)
        return len(data)

    cluster.transports[0].on_get = damaged
    with pytest.raises(CheckpointError, match=r"rank 0, .*expected SHA-256"):
        collect(cluster.sources, out=cluster.out)
    assert not (cluster.out / "COMPLETE").exists()
    assert not (cluster.out / "checkpoint").exists()


def test_a_good_set_survives_a_failed_replacement(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    good = (cluster.out / "checkpoint" / "rank_0" / cluster.file(0).name).read_bytes()
    cluster.save("1_4", {"w": whole("Float16", (64, 32), 9), "norm": MODEL["norm"]})
    cluster.transports[1].on_get = lambda *_: _raise(HostUnreachable("gone", host="node1"))
    with pytest.raises(HostUnreachable):
        collect(cluster.sources, out=cluster.out)
    assert (cluster.out / "checkpoint" / "rank_0" / cluster.file(0).name).read_bytes() == good
    assert json.loads((cluster.out / "COMPLETE").read_text())["steps"] == ["1_4"]


def test_a_damaged_copy_is_fetched_again(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    copy = cluster.out / "checkpoint" / "rank_2" / cluster.file(2).name
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")


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
    [b"", b"{", b"[]", b"null\n", b'{"files":[{}],"strategy":[]}', b'{"files":3,"strategy":[]}'],
)
def test_an_answer_that_makes_no_sense(cluster: Cluster, stdout: bytes) -> None:
    cluster.transports[1].on_run = lambda argv: Completed(0, stdout, b"")
    with pytest.raises(HostNotReady, match=r"node1: the catalogue"):
        collect(cluster.sources, out=cluster.out)


def test_a_host_without_python(cluster: Cluster) -> None:
    cluster.transports[1].on_run = lambda argv: Completed(127, b"", b"not found")
    with pytest.raises(HostNotReady, match=r"node1: .* cannot be run"):
        collect(cluster.sources, out=cluster.out)


def test_an_unreachable_host_whose_slices_others_hold(cluster: Cluster) -> None:
    cluster.transports[1].on_run = lambda argv: _raise(HostUnreachable("no route", host="node1"))
    report = collect(cluster.sources, out=cluster.out)
    assert report.ranks == (0, 1)
    assert "node1: no route" in report.notes


def test_a_whole_set_is_not_replaced_by_half_of_it(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    cluster.transports[1].on_run = lambda argv: _raise(HostUnreachable("no route", host="node1"))
    report = collect(cluster.sources, out=cluster.out)
    assert (report.ranks, report.fetched) == ((0, 1, 2, 3), 0)
    assert_collected(cluster, MODEL, "1_4")


def test_an_unreachable_host_is_the_cause_when_its_slices_are_needed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ONE_COPY)
    cluster.transports[1].on_run = lambda argv: _raise(HostUnreachable("no route", host="node1"))
    with pytest.raises(HostUnreachable):
        collect(cluster.sources, out=cluster.out)


def test_ranks_beyond_the_strategy_need_no_checkpoint(cluster: Cluster) -> None:
    extra = Source(Faulty("node2"), sys.executable, str(cluster.root / "node2"), (4, 5))
    assert collect([*cluster.sources, extra], out=cluster.out).ranks == (0, 1, 2, 3)
    extra.transport.close()


def test_two_collectors_do_not_share_a_folder(cluster: Cluster) -> None:
    def second(path: str, dest: Path, offset: int) -> Optional[int]:
        with pytest.raises(Busy):
            collect(cluster.sources, out=cluster.out)
        return None

    cluster.transports[0].on_get = second
    collect(cluster.sources, out=cluster.out)


def _raise(error: OrchError) -> Completed:
    raise error
