"""Merging while collecting: the same file as collecting and then merging, and no shard on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import numpy as np
import pytest

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.shards import index_file
from orchestrator.engine import stream_merge
from orchestrator.engine.collect import collect
from orchestrator.engine.stream_journal import Arrived, Journal
from orchestrator.engine.stream_merge import merge_from_hosts
from orchestrator.errors import CheckpointError, HostUnreachable
from orchestrator.transport.base import Stream
from tests.unit.checkpoints.sets import Whole, raw_record, split, whole
from tests.unit.engine.hosts import ONE_COPY, Bent, Cluster, Request, change_a_bit

MODEL: Mapping[str, Whole] = {
    "embedding": whole("Float16", (64, 24), 1),
    "dense": whole("BFloat16", (24, 96), 2),
    "experts": whole("Float16", (4, 6, 16), 3),
    "norm": whole("Float32", (24,), 4),
    "global_step": Whole("Int32", np.array(40, np.int32)),
    "adam_m.embedding": whole("Float32", (64, 24), 5),
}


def layouts(matrix: Sequence[int], *cuts: Layout) -> Dict[str, Layout]:
    embedding, dense, experts = cuts
    return {
        "embedding": embedding,
        "dense": dense,
        "experts": experts,
        "norm": split(matrix, -1),
        "adam_m.embedding": embedding,
    }


DP = layouts((4,), split((4,), -1, -1), split((4,), -1, -1), split((4,), -1, -1, -1))
DP_OPT = layouts(
    (4,),
    split((4,), -1, -1, opt=(1, 4)),
    split((4,), -1, -1, opt=(1, 4)),
    split((4,), -1, -1, -1, opt=(1, 4)),
)
MP = layouts((1, 4), split((1, 4), 0, -1), split((1, 4), -1, 0), split((1, 4), -1, -1, 0))
BOTH = layouts(
    (2, 2),
    split((2, 2), 0, -1, opt=(2, 2)),
    split((2, 2), -1, 0),
    split((2, 2), -1, 1, 0),
)
STAGES: Dict[str, List[Dict[str, Layout]]] = {
    "dp4": [DP],
    "dp4_opt": [DP_OPT],
    "mp4": [MP],
    "dp2_mp2_opt": [BOTH],
    "dp2_mp2_pp2": [
        {name: BOTH[name] for name in ("embedding", "norm", "adam_m.embedding")},
        {name: BOTH[name] for name in ("dense", "experts")},
    ],
}


@pytest.fixture(params=STAGES)
def any_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, model=MODEL, stages=STAGES[request.param])
    yield made
    made.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, model=MODEL, stages=[MP])
    yield made
    made.close()


def collected_and_merged(cluster: Cluster, name: str, **options: Any) -> Path:
    out = cluster.root / "shards"
    report = collect(cluster.sources, out=out)
    return merge(report.checkpoint, report.strategy, cluster.root / name, **options).output


def hidden(folder: Path) -> List[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("optimizer", [True, False])
def test_the_same_bytes_as_a_merge_of_collected_shards(
    any_cluster: Cluster, name: str, optimizer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_merge, "UNIT_BYTES", 1000)
    calls: List[Sequence[int]] = []
    report = merge_from_hosts(
        any_cluster.sources,
        any_cluster.out / name,
        include_optimizer=optimizer,
        progress=lambda *call: calls.append(call),
    )
    expected = collected_and_merged(any_cluster, name, include_optimizer=optimizer)
    assert report.output.read_bytes() == expected.read_bytes()
    assert calls[-1][0] == calls[-1][1] > 0
    assert {path.name for path in any_cluster.out.iterdir()} == {name, f"{name}.manifest.json"}
    manifest = json.loads(report.manifest.read_text())
    assert manifest["step"] == "1_4"
    assert [source["rank"] for source in manifest["sources"]] == list(report.ranks)
    assert set(manifest["units"]) == {str(rank) for rank in report.ranks}


def test_without_the_optimizer_it_does_not_travel(tmp_path: Path) -> None:
    model = {name: whole("Float32", (256, 256), i) for i, name in enumerate("ab")}
    model.update({f"adam_m.{name}": tensor for name, tensor in model.items()})
    cluster = Cluster(tmp_path, {name: split((4,), 0, -1) for name in model}, model=model)
    totals: List[int] = []
    merge_from_hosts(
        cluster.sources,
        tmp_path / "m.ckpt",
        include_optimizer=False,
        progress=lambda done, total: totals.append(total),
    )
    assert totals[-1] < sum(t.values.nbytes for t in model.values()) * 0.51


def test_files_cut_into_slices_and_long_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.checkpoints import landing, mindspore_ckpt

    monkeypatch.setattr(mindspore_ckpt, "SLICE_BYTES", 700)
    monkeypatch.setattr(landing, "_MOST", 300)
    monkeypatch.setattr(landing, "_SHORT_RUN", 16)
    cluster = Cluster(tmp_path, model=MODEL, stages=[BOTH])
    report = merge_from_hosts(cluster.sources, tmp_path / "out" / "m.ckpt")
    expected = collected_and_merged(cluster, "m.ckpt")
    assert report.output.read_bytes() == expected.read_bytes()


def test_a_cut_goes_on_where_it_broke(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_merge, "UNIT_BYTES", 2000)
    for transport in cluster.transports:
        transport.on_stream = lambda _, stream: Bent(stream, most=1500)
    report = merge_from_hosts(cluster.sources, cluster.out / "m.ckpt")
    for transport in cluster.transports:
        transport.on_stream = lambda _, stream: stream
    assert any(skip for _, skip in cluster.sent())
    assert report.output.read_bytes() == collected_and_merged(cluster, "m.ckpt").read_bytes()


def test_a_later_attempt_begins_behind_what_arrived(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_merge, "UNIT_BYTES", 1000)
    out = cluster.out / "m.ckpt"
    units = 0

    def gone(request: Request, stream: Stream) -> Stream:
        # Samples come first; of the units, some arrive.
        is_unit = any(length > 256 for part in request["parts"] for _, length in part["ranges"])
        return Bent(stream, most=3000) if is_unit and units == 0 else stream

    cluster.transports[1].on_stream = gone
    # Three times without one more byte would be given up; here each attempt moves on.
    monkeypatch.setattr("orchestrator.engine.receive.ATTEMPTS", 0)
    with pytest.raises(HostUnreachable):
        merge_from_hosts(cluster.sources, out)
    assert not out.exists()
    assert sorted(hidden(cluster.out)) == [".m.ckpt.stream", ".m.ckpt.stream.journal"]
    before = len((cluster.out / ".m.ckpt.stream.journal").read_text().splitlines()) - 1
    assert before > 2

    units = 1
    for transport in cluster.transports:
        transport.sent.clear()
    report = merge_from_hosts(cluster.sources, out)
    assert report.output.read_bytes() == collected_and_merged(cluster, "m.ckpt").read_bytes()
    assert hidden(cluster.out) == []
    first = cluster.transports[0].sent
    assert len([name for name, _ in first]) <= 2 * 2  # its samples; its units had all arrived


def test_a_file_saved_anew_makes_what_arrived_worthless(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_merge, "UNIT_BYTES", 1000)
    monkeypatch.setattr("orchestrator.engine.receive.ATTEMPTS", 0)
    out = cluster.out / "m.ckpt"
    cluster.transports[1].on_stream = lambda r, stream: (
        Bent(stream, most=3000) if len(r["parts"]) > 2 else stream
    )
    with pytest.raises(HostUnreachable):
        merge_from_hosts(cluster.sources, out)
    assert (cluster.out / ".m.ckpt.stream").exists()
    cluster.transports[1].on_stream = lambda _, stream: stream
    cluster.save("1_4", {**MODEL, "embedding": whole("Float16", (64, 24), 77)})
    report = merge_from_hosts(cluster.sources, out)
    assert report.output.read_bytes() == collected_and_merged(cluster, "m.ckpt").read_bytes()


def test_a_part_without_its_journal_or_the_other_way_round(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = merge_from_hosts(cluster.sources, cluster.out / "m.ckpt").output.read_bytes()
    part = cluster.out / ".m.ckpt.stream"
    part.write_bytes(b"x" * len(good))
    assert merge_from_hosts(cluster.sources, cluster.out / "m.ckpt").output.read_bytes() == good

    monkeypatch.setattr("orchestrator.engine.receive.ATTEMPTS", 0)
    monkeypatch.setattr(stream_merge, "UNIT_BYTES", 1000)
    cluster.transports[1].on_stream = lambda r, stream: (
        Bent(stream, most=3000) if len(r["parts"]) > 2 else stream
    )
    with pytest.raises(HostUnreachable):
        merge_from_hosts(cluster.sources, cluster.out / "m.ckpt")
    part.unlink()
    cluster.transports[1].on_stream = lambda _, stream: stream
    assert merge_from_hosts(cluster.sources, cluster.out / "m.ckpt").output.read_bytes() == good


def test_a_journal_of_another_start_of_the_machine_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    unit = Arrived(3, 1, "ab", 7, {0: "cd"})
    first = Journal(path, "plan", fresh=True, boot_id="one")
    first.note(unit)
    first.close()
    with path.open("a") as file:
        file.write('{"rank": 3, "num')  # torn
    again = Journal(path, "plan", fresh=False, boot_id="one")
    assert again.arrived == {(3, 1): unit}
    again.close()
    for plan, boot in (("plan", "two"), ("other", "one"), ("plan", "")):
        other = Journal(path, plan, fresh=False, boot_id=boot)
        assert other.arrived == {}
        other.close()
        first = Journal(path, "plan", fresh=True, boot_id=boot)
        first.note(unit)
        first.close()


# Nothing is silently wrong


def test_copies_of_a_slice_in_several_files_must_be_equal(cluster: Cluster) -> None:
    offset = index_file(cluster.file(2)).tensors["norm"].segments[0].offset
    change_a_bit(cluster.file(2), offset)
    with pytest.raises(CheckpointError) as caught:
        merge_from_hosts(cluster.sources, cluster.out / "m.ckpt")
    assert "rank 2, node1:" in str(caught.value)
    assert str(cluster.file(2)) in str(caught.value)
    assert "parameter norm: expected the same bytes as in rank 0" in str(caught.value)
    assert list(cluster.out.iterdir()) == []
    merge_from_hosts(cluster.sources, cluster.out / "m.ckpt", trust_replicas=True)


def test_copies_that_stay_on_the_hosts_must_be_equal(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, model=MODEL, stages=[DP])
    assert merge_from_hosts(cluster.sources, tmp_path / "m.ckpt").ranks == (0,)
    change_a_bit(cluster.file(3), 500)
    with pytest.raises(CheckpointError, match=r"rank 3, node1:.*expected the same file as rank 0"):
        merge_from_hosts(cluster.sources, tmp_path / "again.ckpt")
    assert not (tmp_path / "again.ckpt").exists()
    merge_from_hosts(cluster.sources, tmp_path / "again.ckpt", trust_replicas=True)


def test_a_checksum_in_the_files_is_checked_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_merge, "UNIT_BYTES", 1000)
    cluster = Cluster(tmp_path, ONE_COPY, crc=True)
    good = merge_from_hosts(cluster.sources, tmp_path / "m.ckpt").output
    assert good.read_bytes() == collected_and_merged(cluster, "c.ckpt").read_bytes()
    offset = index_file(cluster.file(3)).tensors["w"].segments[0].offset
    change_a_bit(cluster.file(3), offset + 5)
    with pytest.raises(CheckpointError, match=r"rank 3, node1:.*: expected CRC32 .*, found"):
        merge_from_hosts(cluster.sources, tmp_path / "again.ckpt")
    report = merge_from_hosts(cluster.sources, tmp_path / "b.ckpt", include_optimizer=False)
    assert "rank 3: the CRC32 of its file was not checked on the way" in report.notes


def test_damage_on_the_wire_is_never_accepted(cluster: Cluster) -> None:
    content = MODEL["embedding"].values[:4].tobytes()
    cluster.transports[0].on_stream = lambda _, stream: Bent(
        stream, change=lambda chunk: chunk.replace(content, bytes(len(content)))
    )
    with pytest.raises(CheckpointError, match=r"node0: rank 0, .* is not what was sent"):
        merge_from_hosts(cluster.sources, cluster.out / "m.ckpt")
    assert not (cluster.out / "m.ckpt").exists()


def test_slices_that_are_copies_betray_a_wrong_strategy(tmp_path: Path) -> None:
    right = Cluster(tmp_path / "right", model=MODEL, stages=[DP])
    wrong = Cluster(tmp_path / "wrong", model=MODEL, stages=[MP])
    for rank in range(4):
        (right.host(rank) / "output" / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(
            (
                wrong.host(rank) / "output" / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
            ).read_bytes()
        )
    with pytest.raises(CheckpointError, match=r"they hold copies, not slices") as caught:
        merge_from_hosts(right.sources, tmp_path / "m.ckpt")
    assert "node0:" in str(caught.value)


@pytest.mark.parametrize("cut", [1, 40, 3000])
def test_a_truncated_file_is_named_where_it_lies(cluster: Cluster, cut: int) -> None:
    cluster.file(2).write_bytes(cluster.file(2).read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="is truncated at offset") as caught:
        merge_from_hosts(cluster.sources, cluster.out / "m.ckpt")
    assert f"node1:{cluster.file(2)}" in str(caught.value)
    assert hidden(cluster.out) == []


def test_a_set_that_cannot_be_compared_on_the_way(tmp_path: Path) -> None:
    model = {"embedding": MODEL["embedding"]}
    stages = [{"embedding": split((2,), 0, -1)}, {"embedding": split((2,), -1, 0)}]
    cluster = Cluster(tmp_path, model=model, stages=stages)
    with pytest.raises(CheckpointError, match="parameter embedding is cut in one way") as caught:
        merge_from_hosts(cluster.sources, tmp_path / "m.ckpt")
    assert "leave --stream out" in caught.value.hint


def test_a_file_that_changes_after_it_was_listed(cluster: Cluster) -> None:
    cluster.transports[1].before_stream = lambda _: cluster.file(3).write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"rank_3-1_4.ckpt has changed since it was listed"):
        merge_from_hosts(cluster.sources, cluster.out / "m.ckpt")


def test_a_folder_that_cannot_be_written(cluster: Cluster) -> None:
    (cluster.root / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot write in .*/file: Not a directory"):
        merge_from_hosts(cluster.sources, cluster.root / "file" / "m.ckpt")


def test_texts_come_along(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, model=MODEL, stages=[MP])
    note = raw_record("note", [0], "str", ("long text " * 200).encode("utf-32-le"))
    for rank in range(4):
        cluster.file(rank).write_bytes(cluster.file(rank).read_bytes() + note)
    report = merge_from_hosts(cluster.sources, tmp_path / "m.safetensors")
    assert index_file(report.output).metadata["note"] == "long text " * 200


MEASURED = """
import sys
from orchestrator.engine.catalogue import Source
from orchestrator.engine.stream_merge import merge_from_hosts
from orchestrator.transport.local import LocalTransport
from pathlib import Path
peak = 0
def look(done, total):
    global peak
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            peak = max(peak, int(line.split()[1]))
root = Path(sys.argv[1])
transports = [LocalTransport(f"node{i}", python=sys.executable) for i in range(2)]
sources = [
    Source(t, sys.executable, str(root / t.name), (2 * i, 2 * i + 1))
    for i, t in enumerate(transports)
]
merge_from_hosts(sources, root / "m.ckpt", progress=look)
for transport in transports:
    transport.close()
print(peak)
"""


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    model = {f"w{i}": whole("Float32", (2048, 2048), i) for i in range(6)}  # 16 MiB each
    cut = {f"w{i}": split((2, 2), *((-1, 0) if i % 2 else (0, -1)), opt=(2, 2)) for i in range(6)}
    cluster = Cluster(tmp_path, cut, model=model)
    argv = [sys.executable, "-c", MEASURED, str(tmp_path)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 << 10  # KiB
    merged = (tmp_path / "m.ckpt").read_bytes()
    assert all(tensor.values.tobytes() in merged for tensor in model.values())
    cluster.close()


def test_a_shared_file_system_is_read_in_place(cluster: Cluster) -> None:
    """No host sends anything; where the controller sees the files need not be their path there."""
    elsewhere = cluster.root / "mount"
    elsewhere.mkdir()
    sources = []
    for source in cluster.sources:
        (elsewhere / source.name).symlink_to(source.run_dir)
        sources.append(replace(source, shared_dir=str(elsewhere / source.name)))
    ours = merge_from_hosts(sources, cluster.out / "m.ckpt").output.read_bytes()
    assert cluster.sent() == []
    assert ours == collected_and_merged(cluster, "m.ckpt").read_bytes()
