"""Collecting from hosts that are folders of this machine, with faults between here and there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest

from orchestrator.checkpoints.merge import merge
from orchestrator.engine.catalogue import Source
from orchestrator.engine.collect import collect
from orchestrator.errors import (
    Busy,
    CheckpointError,
    HostErrors,
    HostUnreachable,
    OrchError,
)
from orchestrator.transport.base import Stream
from orchestrator.transport.pace import Pace
from tests.unit.checkpoints.sets import Whole, whole
from tests.unit.engine.hosts import (
    MODEL,
    ONE_COPY,
    Bent,
    Cluster,
    Faulty,
    Request,
    change_a_bit,
)


def assert_collected(
    cluster: Cluster, model: Dict[str, Whole], step: str, ranks: Sequence[int] = range(4)
) -> None:
    for rank in range(4):
        copy = cluster.copy(rank, step)
        if rank in ranks:
            assert copy.read_bytes() == cluster.file(rank, step).read_bytes()
        else:
            assert not copy.exists()
    assert step in json.loads((cluster.out / "COMPLETE").read_text())["steps"]
    assert not (cluster.out / ".incoming").exists()
    strategy = cluster.out / "strategy"
    merged = merge(
        cluster.out / "checkpoint",
        strategy if strategy.exists() else None,
        cluster.root / "m.ckpt",
        step=step,
    )
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
    before = len(cluster.sent())
    report = collect(cluster.sources, out=cluster.out)
    assert report.fetched == 0
    assert len(cluster.sent()) == before


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


# Cut and resumed


def cut_once(cluster: Cluster, transport: Faulty, most: int) -> None:
    cuts = iter([most])

    def cut(_: Request, stream: Stream) -> Stream:
        return Bent(stream, most=next(cuts, None))

    transport.on_stream = cut


def test_a_cut_transfer_goes_on_at_its_offset(cluster: Cluster) -> None:
    size = cluster.file(2).stat().st_size
    cut_once(cluster, cluster.transports[1], size + 700)  # within the second file
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    name = cluster.file(3).name
    (skip,) = [skip for sent, skip in cluster.transports[1].sent if sent == name and skip]
    assert 0 < skip < cluster.file(3).stat().st_size
    assert [s for s, _ in cluster.transports[1].sent].count(cluster.file(2).name) == 1


def test_a_later_attempt_goes_on_where_the_first_one_died(cluster: Cluster) -> None:
    def die(_: Request, stream: Stream) -> Stream:
        raise KeyboardInterrupt

    cluster.transports[1].on_stream = die
    part = cluster.out / ".incoming" / "rank_2" / f"{cluster.file(2).name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(cluster.file(2).read_bytes()[:600])
    with pytest.raises(KeyboardInterrupt):
        collect(cluster.sources, out=cluster.out)
    assert not (cluster.out / "COMPLETE").exists()
    assert not (cluster.out / "checkpoint").exists()

    cluster.transports[1].on_stream = lambda _, stream: stream
    cluster.transports[0].sent.clear()
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    sizes = {(cluster.file(rank).name, cluster.file(rank).stat().st_size) for rank in (0, 1)}
    assert set(cluster.transports[0].sent) == sizes  # whole already, only verified
    assert (cluster.file(2).name, 600) in cluster.sent()


def test_a_connection_that_always_breaks_is_given_up(cluster: Cluster) -> None:
    cluster.transports[1].on_stream = lambda _, stream: Bent(stream, most=0)
    with pytest.raises(HostUnreachable):
        collect(cluster.sources, out=cluster.out)
    assert len({name for name, _ in cluster.transports[1].sent}) == 2
    assert len(cluster.transports[1].sent) == 2 * 3  # attempts
    assert not (cluster.out / "COMPLETE").exists()


def test_a_connection_that_breaks_and_breaks_but_moves_on_is_not(cluster: Cluster) -> None:
    cluster.transports[1].on_stream = lambda _, stream: Bent(stream, most=500)
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    assert len(cluster.transports[1].sent) > 6


def test_the_rest_of_a_file_since_replaced_is_noticed(cluster: Cluster) -> None:
    part = cluster.out / ".incoming" / "rank_0" / (cluster.file(0).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"bytes of another time")
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")


def test_damage_on_the_wire_is_never_accepted(cluster: Cluster) -> None:
    w = cluster.file(0).read_bytes()[-3:]  # in both: the end of norm

    cluster.transports[0].on_stream = lambda _, stream: Bent(
        stream, change=lambda chunk: chunk.replace(w, b"???")
    )
    with pytest.raises(CheckpointError, match=r"node0: rank 0, .*expected CRC32"):
        collect(cluster.sources, out=cluster.out)
    assert not (cluster.out / "COMPLETE").exists()
    assert not (cluster.out / "checkpoint").exists()


def test_damage_that_passes_is_repaired(cluster: Cluster) -> None:
    w = cluster.file(0).read_bytes()[-3:]
    damages = iter([b"???"])

    def bend(_: Request, stream: Stream) -> Stream:
        bad = next(damages, w)
        return Bent(stream, change=lambda chunk: chunk.replace(w, bad))

    cluster.transports[0].on_stream = bend
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")


def test_a_file_that_changes_before_it_is_sent(cluster: Cluster) -> None:
    def change(_: Request) -> None:
        cluster.file(0).write_bytes(cluster.file(0).read_bytes() + b"more")

    cluster.transports[0].before_stream = change
    with pytest.raises(CheckpointError, match=r"rank_0-1_4.ckpt has changed since it was listed"):
        collect(cluster.sources, out=cluster.out)


def test_a_file_that_vanishes_before_it_is_sent(cluster: Cluster) -> None:
    cluster.transports[0].before_stream = lambda _: cluster.file(0).unlink()
    with pytest.raises(CheckpointError, match=r"node0: cannot read .*rank_0-1_4.ckpt: No such"):
        collect(cluster.sources, out=cluster.out)


# What is good stays


def test_a_good_set_survives_a_failed_replacement(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    good = cluster.copy(0).read_bytes()
    cluster.save("1_4", {"w": whole("Float16", (64, 32), 9), "norm": MODEL["norm"]})
    cluster.transports[1].on_stream = lambda *_: _raise(HostUnreachable("gone", host="node1"))
    with pytest.raises(HostUnreachable):
        collect(cluster.sources, out=cluster.out)
    assert cluster.copy(0).read_bytes() == good
    assert json.loads((cluster.out / "COMPLETE").read_text())["steps"] == ["1_4"]


def test_a_step_saved_anew_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    collect(cluster.sources, out=cluster.out, everything=True)
    newer = {"w": whole("Float16", (64, 32), 9), "norm": MODEL["norm"]}
    cluster.save("1_4", newer)
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, newer, "1_4", ranks=(0, 3))


def test_a_damaged_copy_is_fetched_again_and_no_other(cluster: Cluster) -> None:
    collect(cluster.sources, out=cluster.out)
    copy = cluster.copy(2)
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    for transport in cluster.transports:
        transport.sent.clear()
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    assert cluster.sent() == [(cluster.file(2).name, 0)]


# Hosts that cannot be asked


def test_an_unreachable_host_is_the_cause_when_its_slices_are_needed(cluster: Cluster) -> None:
    cluster.transports[1].on_run = lambda argv: _raise(HostUnreachable("no route", host="node1"))
    with pytest.raises(HostUnreachable):
        collect(cluster.sources, out=cluster.out)


def test_ranks_beyond_the_strategy_need_no_checkpoint(cluster: Cluster) -> None:
    extra = Source(Faulty("node2"), sys.executable, str(cluster.root / "node2"), (4, 5))
    assert collect([*cluster.sources, extra], out=cluster.out).ranks == (0, 1, 2, 3)
    extra.transport.close()


def test_two_collectors_do_not_share_a_folder(cluster: Cluster) -> None:
    def second(_: Request, stream: Stream) -> Stream:
        with pytest.raises(Busy):
            collect(cluster.sources, out=cluster.out)
        return stream

    cluster.transports[0].on_stream = second
    collect(cluster.sources, out=cluster.out)


# Another way for the bytes


def test_a_way_that_is_barred_is_left_for_the_other(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def barred(argv: Sequence[str]) -> Stream:
        raise HostUnreachable("ssh: permission denied", host="node0")

    own = cluster.transports[0].stream
    sources = [replace(cluster.sources[0], streams=(barred, own)), cluster.sources[1]]
    collect(sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")
    assert "ssh: permission denied; trying without the system's ssh" in caplog.text

    shutil.rmtree(cluster.out)
    with pytest.raises(HostUnreachable, match="permission denied"):
        collect([replace(sources[0], streams=(barred,)), sources[1]], out=cluster.out)


def test_a_limit_on_the_rate_holds_over_all_hosts(cluster: Cluster) -> None:
    now = [0.0]
    pace = Pace(1000, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    report = collect(cluster.sources, out=cluster.out, pace=pace)
    assert now[0] >= report.nbytes / 1000 - 0.5


# Room, and what is kept


def test_no_room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(cluster.file(rank).stat().st_size for rank in range(4))
    usage = shutil.disk_usage(cluster.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(CheckpointError, match=f"has {size - 1} bytes free, .* needs {size}$"):
        collect(cluster.sources, out=cluster.out)
    assert cluster.sent() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * size - 1))
    with pytest.raises(CheckpointError, match=r"and the merged file about") as caught:
        collect(cluster.sources, out=cluster.out, with_merge=True)
    assert "--stream" in caught.value.hint
    collect(cluster.sources, out=cluster.out)


def test_a_disk_that_fills_up_on_the_way(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.engine.fetch.write", full)
        with pytest.raises(HostErrors) as caught:
            collect(cluster.sources, out=cluster.out)
    assert caught.value.exit_status == 10
    assert all("No space left on device" in str(error) for error in caught.value.errors)
    collect(cluster.sources, out=cluster.out)
    assert_collected(cluster, MODEL, "1_4")


def test_a_folder_that_cannot_be_made(cluster: Cluster) -> None:
    (cluster.out / ".incoming").parent.mkdir()
    (cluster.out / ".incoming").write_bytes(b"a file")
    with pytest.raises(HostErrors) as caught:
        collect(cluster.sources, out=cluster.out)
    assert "cannot write" in str(caught.value.errors[0])


def test_the_last_steps_are_kept(cluster: Cluster) -> None:
    for step in ("1_4", "1_10", "2_2", "1_30"):
        cluster.save(step, MODEL)
        collect(cluster.sources, out=cluster.out, step=step)
    stray = cluster.out / "checkpoint" / "rank_0" / "mine.ckpt"
    stray.write_bytes(b"mine")
    report = collect(cluster.sources, out=cluster.out, step="1_30", keep=2)
    assert report.removed == ("1_4", "1_10")
    assert json.loads((cluster.out / "COMPLETE").read_text())["steps"] == ["1_30", "2_2"]
    assert list(json.loads((cluster.out / "manifest.json").read_text())["steps"]) == ["2_2", "1_30"]
    found = {path.name for path in (cluster.out / "checkpoint" / "rank_0").iterdir()}
    assert found == {"glm2_rank_0-2_2.ckpt", "glm2_rank_0-1_30.ckpt", "mine.ckpt"}
    # An old step that was just collected is one of those that stay.
    assert collect(cluster.sources, out=cluster.out, step="1_4", keep=1).removed == ("1_30", "2_2")
    assert_collected(cluster, MODEL, "1_4")


# A shared file system


def shared(cluster: Cluster) -> List[Source]:
    return [replace(source, shared_dir=source.run_dir) for source in cluster.sources]


def test_files_on_a_shared_file_system_are_linked(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = collect(shared(cluster), out=cluster.out)
    assert (report.fetched, cluster.sent()) == (4, [])
    assert cluster.copy(0).samefile(cluster.file(0))
    assert_collected(cluster, MODEL, "1_4")
    assert collect(shared(cluster), out=cluster.out).fetched == 0

    def other_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    shutil.rmtree(cluster.out)
    monkeypatch.setattr(os, "link", other_disk)
    collect(shared(cluster), out=cluster.out)
    assert cluster.copy(3).is_symlink()
    assert_collected(cluster, MODEL, "1_4")
    collect(cluster.sources, out=cluster.root / "copied")
    assert len(cluster.sent()) == 4


def test_a_linked_file_that_changes_is_noticed(cluster: Cluster) -> None:
    collect(shared(cluster), out=cluster.out)
    cluster.file(1).write_bytes(cluster.file(1).read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"rank 1, .* as collected, found other content"):
        merge(cluster.out / "checkpoint", cluster.out / "strategy", cluster.root / "m.ckpt")


def test_a_shared_folder_that_is_not_there(cluster: Cluster) -> None:
    first, second = cluster.sources
    lost = replace(first, shared_dir=str(cluster.root / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"node0: the host has .*cannot be read here") as e:
        collect([lost, second], out=cluster.out)
    assert "shared_workdir" in e.value.hint


def test_a_shared_folder_that_is_another(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other", ONE_COPY)
    os.utime(other.file(0), ns=(1, 1))
    first, second = cluster.sources
    with pytest.raises(CheckpointError, match=r"is not the file that the host has"):
        collect([replace(first, shared_dir=str(other.host(0))), second], out=cluster.out)
    for rank in (0, 1):
        changed = cluster.file(rank).stat().st_mtime_ns
        change_a_bit(other.file(rank), -1)
        os.utime(other.file(rank), ns=(changed, changed))
    with pytest.raises(CheckpointError, match=r"rank 0, .*as the host says, found"):
        collect([replace(first, shared_dir=str(other.host(0))), second], out=cluster.out)


def _raise(error: OrchError) -> Any:
    raise error
