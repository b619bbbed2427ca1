"""Whatever is in a file or a name: an answer or a CheckpointError, soon, and in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Callable, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.checkpoints.catalogue import checkpoint_file, parse_step, select
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.mindspore_ckpt import index_ckpt
from orchestrator.checkpoints.safetensors_file import index_safetensors
from orchestrator.checkpoints.shards import index_file
from orchestrator.checkpoints.strategy import Strategy, read_strategies, strategy_bytes
from orchestrator.checkpoints.tensor import FileIndex
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import CheckpointSet, ckpt_bytes, split, whole, write_set

MODEL = {
    "embedding": whole("Float16", (8, 4), 1),
    "norm": whole("Float32", (4,), 2),
    "step": whole("Int32", (), 3),
}
LAYOUTS = {"embedding": split((2, 2), 0, -1), "norm": split((2, 2), -1)}
GOOD_CKPT = ckpt_bytes(MODEL, crc=True)
GOOD_STRATEGY = strategy_bytes(Strategy((LAYOUTS,), 4), 0)
_HEADER = (
    b'{"__metadata__":{"format":"ms"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}'
)
GOOD_SAFETENSORS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(10)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file with bytes changed, removed, repeated or put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "repeat", "drop"]))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=12))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        else:
            del data[at : at + draw(st.integers(1, 12))]
    return bytes(data)


FEW_BYTES = 3 << 20


def check(data: bytes, path: Path, index: Callable[[Path], FileIndex]) -> None:
    path.write_bytes(data)
    tracemalloc.start()
    try:
        found = index(path)
    except CheckpointError as error:
        problem = str(error)
    else:
        problem = ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < FEW_BYTES
    if problem:
        assert str(path) in problem
        return
    for tensor in found.tensors.values():
        for offset, length in tensor.segments:
            assert 0 <= offset <= offset + length <= len(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


many = settings(max_examples=300, deadline=None)


@many
@given(data=st.one_of(mutated(GOOD_CKPT), st.binary(max_size=200)))
def test_ckpt(folder: Path, data: bytes) -> None:
    check(data, folder / "a.ckpt", index_ckpt)


@many
@given(data=st.one_of(mutated(GOOD_SAFETENSORS), st.binary(max_size=200)))
def test_safetensors(folder: Path, data: bytes) -> None:
    check(data, folder / "a.safetensors", index_safetensors)


def test_the_good_files_are_good(folder: Path) -> None:
    for name, data in (("a.ckpt", GOOD_CKPT), ("a.safetensors", GOOD_SAFETENSORS)):
        (folder / name).write_bytes(data)
        assert index_file(folder / name).tensors
    assert read_strategies({"s.ckpt": GOOD_STRATEGY}, "s").world_size == 4


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["dev_matrix", "tensor_map", "stage", "parallel_layout_item", "w"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


@many
@given(data=st.one_of(mutated(GOOD_STRATEGY), st.binary(max_size=200)))
def test_protobuf_strategy(data: bytes) -> None:
    try:
        found = read_strategies({"s.ckpt": data}, "s.ckpt")
    except CheckpointError:
        return
    assert 0 < found.world_size <= 1_000_000


@many
@given(layouts=json_values, items=json_values)
def test_json_strategy(layouts: object, items: object) -> None:
    document = {"parallel_layout_item": layouts, "parallel_strategy_item": items}
    try:
        read_strategies({"s.json": json.dumps(document).encode()}, "s.json")
    except CheckpointError:
        return


@many
@given(name=st.text(max_size=60), rank=st.integers(0, 3))
def test_names(name: str, rank: int) -> None:
    try:
        found = checkpoint_file(rank, name)
    except CheckpointError:
        return
    assert found is None or found.rank == rank


names = st.builds(
    "{}_rank_{}-{}_{}.{}".format,
    st.sampled_from(["a", "b", "a_rank_1", "-1_2"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 20),
    st.sampled_from(["ckpt", "safetensors", "tmp"]),
)


@many
@given(listing=st.lists(st.tuples(st.integers(0, 3), names), max_size=12), step=st.text(max_size=5))
def test_any_listing_gives_one_step_or_an_error(listing: List[tuple], step: str) -> None:  # type: ignore[type-arg]
    try:
        files = [f for f in (checkpoint_file(rank, name) for rank, name in listing) if f]
        chosen = select(files, ranks=range(4), step="latest")
    except CheckpointError:
        return
    assert len({file.step for file in chosen.files.values()}) == 1
    assert all(rank == file.rank for rank, file in chosen.files.items())
    assert set(chosen.files).isdisjoint(chosen.missing)
    try:
        parse_step(step)
    except CheckpointError:
        return


@pytest.fixture(scope="module")
def good_set(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSet:
    return write_set(tmp_path_factory.mktemp("good"), MODEL, [LAYOUTS])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), rank=st.integers(0, 3))
def test_a_set_with_one_damaged_file_merges_right_or_not_at_all(
    good_set: CheckpointSet, data: st.DataObject, rank: int
) -> None:
    path = good_set.file(rank)
    good = path.read_bytes()
    out = good_set.root / "out.ckpt"
    path.write_bytes(data.draw(mutated(good)))
    try:
        report = merge(good_set.shards, good_set.strategy, out, fmt="ckpt")
    except CheckpointError:
        assert not out.exists()
        return
    finally:
        path.write_bytes(good)
    # every slice has a replica here, so damage cannot pass
    found = index_file(report.output).tensors
    content = report.output.read_bytes()
    for name, tensor in MODEL.items():
        ((offset, length),) = found[name].segments
        assert content[offset : offset + length] == tensor.values.tobytes()
    out.unlink()
