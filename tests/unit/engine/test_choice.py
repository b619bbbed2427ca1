"""Which files of a step travel: one replica of each shard, the nearest; copies are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import pytest

from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.shards import index_file
from orchestrator.engine.choice import choose
from orchestrator.engine.collect import collect
from orchestrator.errors import CheckpointError, HostUnreachable, OrchError
from tests.unit.checkpoints.sets import split
from tests.unit.engine.hosts import MODEL, Cluster, change_a_bit


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.close()


def content(cluster: Cluster, rank: int, name: str) -> int:
    return index_file(cluster.file(rank)).tensors[name].segments[0].offset


def test_one_replica_of_each_shard_travels_and_hosts_share_the_load(cluster: Cluster) -> None:
    report = collect(cluster.sources, out=cluster.out)
    assert (report.ranks, report.fetched) == ((0, 3), 2)
    assert {name for name, _ in cluster.sent()} == {cluster.file(0).name, cluster.file(3).name}
    assert "ranks 1, 2: copies of what others hold, not needed" in report.notes
    merged = merge(cluster.out / "checkpoint", cluster.out / "strategy", cluster.root / "m.ckpt")
    data = merged.output.read_bytes()
    assert all(tensor.values.tobytes() in data for tensor in MODEL.values())


def test_all_travel_when_asked_for(cluster: Cluster) -> None:
    assert collect(cluster.sources, out=cluster.out).fetched == 2
    report = collect(cluster.sources, out=cluster.out, everything=True)
    assert (report.ranks, report.fetched) == ((0, 1, 2, 3), 2)
    # More than is needed is not made less.
    again = collect(cluster.sources, out=cluster.out)
    assert (again.ranks, again.fetched) == ((0, 1, 2, 3), 0)


def test_near_is_before_far(cluster: Cluster) -> None:
    far, near = cluster.sources
    choice = choose([far, replace(near, is_local=True)], step="latest")
    assert [file.rank for file in choice.files] == [2, 3]
    shared = replace(far, shared_dir=far.run_dir)
    choice = choose([shared, replace(near, is_local=True)], step="latest")
    assert [file.rank for file in choice.files] == [0, 1]


def test_what_is_here_already_is_nearest(cluster: Cluster) -> None:
    part = cluster.out / ".incoming" / "rank_2" / f"{cluster.file(2).name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(cluster.file(2).read_bytes()[:600])
    assert collect(cluster.sources, out=cluster.out).ranks == (1, 2)
    assert (cluster.file(2).name, 600) in cluster.sent()
    # The same ranks again at the next step, so that a merge of the folder finds them all.
    cluster.save("1_10", MODEL)
    assert collect(cluster.sources, out=cluster.out).ranks == (1, 2)
    merge(cluster.out / "checkpoint", cluster.out / "strategy", cluster.root / "m.ckpt")


def test_a_copy_that_differs_travels_too_and_the_merge_names_the_parameter(
    cluster: Cluster,
) -> None:
    change_a_bit(cluster.file(2), content(cluster, 2, "w") + 3)
    report = collect(cluster.sources, out=cluster.out)
    assert report.ranks == (0, 2, 3)
    assert "rank 2: not equal to the copies, came too" in report.notes
    with pytest.raises(CheckpointError, match=r"rank 2, .*parameter w: expected the same bytes"):
        merge(cluster.out / "checkpoint", cluster.out / "strategy", cluster.root / "m.ckpt")


def test_copies_can_be_trusted(cluster: Cluster) -> None:
    change_a_bit(cluster.file(2), content(cluster, 2, "w") + 3)
    assert collect(cluster.sources, out=cluster.out, trust_replicas=True).ranks == (0, 3)


def test_files_of_different_size_are_no_copies(cluster: Cluster) -> None:
    cluster.file(2).write_bytes(cluster.file(2).read_bytes() + b"more")
    assert collect(cluster.sources, out=cluster.out).ranks == (0, 1, 2)


def test_without_a_strategy_equal_files_are_copies(tmp_path: Path) -> None:
    whole_everywhere = {"w": split((4,), -1, -1), "norm": split((4,), -1)}
    cluster = Cluster(tmp_path, whole_everywhere)
    cluster.without_strategy()
    report = collect(cluster.sources, out=cluster.out)
    assert (report.ranks, report.strategy) == ((0,), None)
    merged = merge(cluster.out / "checkpoint", None, tmp_path / "m.ckpt").output
    assert merged.read_bytes() == cluster.file(0).read_bytes()


def test_without_a_strategy_other_files_travel_all(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"w": split((1, 4), 0, -1), "norm": split((1, 4), -1)})
    cluster.without_strategy()
    assert collect(cluster.sources, out=cluster.out).ranks == (0, 1, 2, 3)
    with pytest.raises(CheckpointError, match="parameter w: expected the same bytes"):
        merge(cluster.out / "checkpoint", None, tmp_path / "m.ckpt")


def test_without_a_strategy_a_missing_rank_proves_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"w": split((4,), -1, -1), "norm": split((4,), -1)})
    cluster.without_strategy()
    cluster.file(3).unlink()
    with pytest.raises(CheckpointError, match=r"found none of rank 3 and no strategy file"):
        collect(cluster.sources, out=cluster.out)


def test_an_unreachable_host_whose_slices_others_hold(cluster: Cluster) -> None:
    cluster.transports[1].on_run = lambda argv: _raise(HostUnreachable("no route", host="node1"))
    report = collect(cluster.sources, out=cluster.out)
    assert report.ranks == (0, 1)
    assert "node1: no route" in report.notes


def test_a_whole_set_is_not_replaced_by_half_of_it(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out, everything=True)
    cluster.transports[1].on_run = lambda argv: _raise(HostUnreachable("no route", host="node1"))
    report = collect(cluster.sources, out=cluster.out)
    assert (report.ranks, report.fetched) == ((0, 1, 2, 3), 0)
    # Nor where a part of it has to come again.
    cluster.copy(1).unlink()
    report = collect(cluster.sources, out=cluster.out)
    assert (report.ranks, report.fetched) == ((0, 1, 2, 3), 1)
    assert cluster.copy(3).read_bytes() == cluster.file(3).read_bytes()


def test_strategy_files_of_different_runs(cluster: Cluster) -> None:
    name = "ckpt_strategy_rank_0.ckpt"
    other = cluster.host(2) / "output" / "strategy" / name
    other.write_bytes((cluster.host(0) / "output" / "strategy" / name).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=f"{name} of node1 differs from that of node0"):
        choose(cluster.sources, step="latest")


def _raise(error: OrchError) -> Any:
    raise error
