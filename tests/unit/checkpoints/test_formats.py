"""Reading and writing the file formats themselves."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.checkpoints import mindspore_ckpt
from orchestrator.checkpoints.checksum import joined_crc
from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.mindspore_ckpt import ckpt_layout, index_ckpt
from orchestrator.checkpoints.safetensors_file import index_safetensors, safetensors_layout
from orchestrator.checkpoints.strategy import (
    Strategy,
    load_strategy,
    parse_strategy,
    read_strategies,
    strategy_bytes,
)
from orchestrator.checkpoints.tensor import FileLayout, NewTensor
from orchestrator.checkpoints.wire import varint_field
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import field, raw_record, split, varint

# .ckpt


def index(tmp_path: Path, data: bytes) -> mindspore_ckpt.FileIndex:
    path = tmp_path / "a.ckpt"
    path.write_bytes(data)
    return index_ckpt(path)


def test_slices_of_equal_parts_are_joined(tmp_path: Path) -> None:
    records = [raw_record("w", [4, 2], "Float32", bytes([i]) * 16) for i in range(2)]
    found = index(tmp_path, b"".join(records)).tensors["w"]
    assert (found.shape, found.nbytes, len(found.segments)) == ((4, 2), 32, 2)


@pytest.mark.parametrize("dims", [[], [0]])
def test_a_scalar_has_no_dims_or_one_zero(tmp_path: Path, dims: List[int]) -> None:
    assert index(tmp_path, raw_record("s", dims, "Int64", bytes(8))).tensors["s"].shape == ()


def test_a_tensor_of_no_elements(tmp_path: Path) -> None:
    assert index(tmp_path, raw_record("e", [0], "Float32", b"")).tensors["e"].shape == (0,)
    assert index(tmp_path, raw_record("e", [3, 0], "Float32", b"")).tensors["e"].shape == (3, 0)


def test_packed_dims(tmp_path: Path) -> None:
    tensor = field(1, varint(2) + varint(3)) + field(2, b"Int8") + field(3, bytes(6))
    data = field(1, field(1, b"w") + field(2, tensor))
    assert index(tmp_path, data).tensors["w"].shape == (2, 3)


def test_several_values_in_one_message_are_the_same_bytes(tmp_path: Path) -> None:
    data = raw_record("a", [1], "Bool", b"\1") + raw_record("b", [1], "Bool", b"\0")
    assert list(index(tmp_path, data).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x12\x00", "corrupt at offset 0 .*field 2 where a record should begin"),
        (b"\x0a\x05ab", "truncated at offset 0 .*5 bytes announced, 2 left"),
        (b"\x0a" + b"\xff" * 11, "corrupt at offset 0 .*number longer than ten bytes"),
        (b"\x0a" + varint(1 << 62), "truncated at offset 0"),
        (raw_record("a", [1], "Bool", b"\1") + b"\x0b", "corrupt .*last good parameter: a"),
        (raw_record("a", [1], "Complex64", bytes(8)), "unknown type 'Complex64'"),
        (raw_record("a", [-1], "Bool", b""), "negative dimension"),
        (raw_record("a", [1] * 40, "Bool", b"\1"), "more than 32 axes"),
        (raw_record("a", [3], "Float32", bytes(8)), "expected 12 bytes .* found 8 bytes"),
        (raw_record("a", [1 << 60, 1 << 60], "Float32", bytes(8)), "found 8 bytes"),
        (raw_record("", [1], "Bool", b"\1"), "unprintable name"),
        (raw_record("a\x1b[2J", [1], "Bool", b"\1"), "unprintable name"),
        (raw_record("n" * 20000, [1], "Bool", b"\1"), "name of 20000 bytes"),
        (raw_record("a", [0], "str", b"abc"), "whole UTF-32 characters"),
        (field(1, field(1, b"a")), "record without name or tensor"),
        (field(1, field(1, b"a") + field(2, field(2, b"Bool"))), "without type or content"),
        (field(1, field(1, b"\xff") + field(2, b"")), "not UTF-8"),
        (field(1, field(1, b"m") + field(3, b"")), "map parameter 'm'"),
        (
            raw_record("a", [2], "Int8", b"1") + raw_record("a", [2], "UInt8", b"2"),
            r"slices of a disagree .*expected Int8\[2\], found UInt8\[2\]",
        ),
        (b"crc_num" + bytes(10), None),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    if words is None:
        assert index(tmp_path, data).tensors == {}
        return
    with pytest.raises(CheckpointError, match=f"(?s){words}") as caught:
        index(tmp_path, data)
    assert "a.ckpt" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot open .*gone.ckpt: No such file"):
        index_ckpt(tmp_path / "gone.ckpt")


def test_no_content_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    pread = mindspore_ckpt.os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        data = pread(descriptor, length, offset)
        read += len(data)
        return data

    monkeypatch.setattr(mindspore_ckpt.os, "pread", counting)
    data = b"".join(raw_record(f"w{i}", [1 << 20], "Int8", bytes(1 << 20)) for i in range(4))
    assert len(index(tmp_path, data).tensors) == 4
    assert read < 600_000


def test_a_layout_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore_ckpt, "SLICE_BYTES", 10)
    tensors = [
        NewTensor("a", "Float32", (3, 2), 24),
        NewTensor("s", "Int64", (), 8),
        NewTensor("t", "str", (), 8),
    ]
    layout = ckpt_layout(tensors)
    data = filled(layout)
    expected = b"".join(raw_record("a", [3, 2], "Float32", b"\xaa" * size) for size in (10, 10, 4))
    expected += raw_record("s", [], "Int64", b"\xaa" * 8) + raw_record("t", [0], "str", b"\xaa" * 8)
    assert data == expected


def filled(layout: FileLayout) -> bytes:
    data = bytearray(layout.size)
    for offset, fixed in layout.fixed:
        data[offset : offset + len(fixed)] = fixed
    for segments in layout.segments.values():
        for offset, length in segments:
            data[offset : offset + length] = b"\xaa" * length
    return bytes(data)


# safetensors


def test_the_reference_librarys_files_are_read(tmp_path: Path) -> None:
    values = {
        "b": np.ones((2, 3), np.float16),
        "a": np.ones((), np.int64),
        "e": np.ones((0, 4), np.float32),
    }
    save_file(values, tmp_path / "a.safetensors", metadata={"format": "ms"})
    found = index_safetensors(tmp_path / "a.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in found.tensors.items()} == {
        "b": ("Float16", (2, 3)),
        "a": ("Int64", ()),
        "e": ("Float32", (0, 4)),
    }
    assert found.metadata == {"format": "ms"}


def test_wide_elements_are_aligned(tmp_path: Path) -> None:
    tensors = [NewTensor("h", "Float16", (3,), 6), NewTensor("w", "Int64", (2,), 16)]
    layout = safetensors_layout(tensors, {})
    assert layout.segments["w"][0].offset % 8 == 0
    (tmp_path / "a.safetensors").write_bytes(filled(layout))
    assert set(index_safetensors(tmp_path / "a.safetensors").tensors) == {"h", "w"}


def header(entries: object, body: int = 0, length: int = -1) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    size = len(text) if length < 0 else length
    return size.to_bytes(8, "little") + text + bytes(body)


def entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> Dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0", "too few for a header"),
        (header({}, length=1 << 40), "a header of 1099511627776 bytes"),
        (header(b"{"), "not valid JSON"),
        (header(b"[" * 9999), "not valid JSON"),
        (header(b'{"a":1,"a":2}'), "'a' appears twice"),
        (header([]), "not a JSON object"),
        (header({"__metadata__": {"a": 1}}), "not a map of texts"),
        (header({"a": entry()}), "truncated .* in parameter a"),
        (header({"a": entry()}, 9), "1 bytes follow its last parameter"),
        (header({"a": entry(offsets=(4, 12))}, 12), "does not follow the header"),
        (header({"a": entry(), "b": entry(offsets=(4, 12))}, 12), "does not follow a"),
        (header({"a": entry("F8")}, 8), "unknown type 'F8'"),
        (header({"a": entry(shape=(3,))}, 8), "needs 12 bytes, found 8"),
        (header({"a": entry(shape=(-1,))}, 8), "bad number"),
        (header({"a": entry(shape=(True,))}, 8), "bad number"),
        (header({"a": entry(shape="2")}, 8), "no list of at most 32"),
        (header({"a": entry(offsets=(8, 0))}, 8), r"data_offsets \[8, 0\]"),
        (header({"a": 3}, 8), "not an object"),
        (header({"a\n": entry()}, 8), "unprintable parameter name"),
    ],
)
def test_what_is_wrong_with_a_safetensors_file_is_said(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        index_safetensors(path)
    assert str(path) in str(caught.value)


# Strategies


def test_a_strategy_is_written_and_read(tmp_path: Path) -> None:
    stages = (
        {"a": split((2, 4), 0, -1, opt=(4, 2)), "s": Layout((2, 4), ())},
        {"b": Layout((2, 2, 2), ((2, 0), ()), 2, -1)},
    )
    strategy = Strategy(stages, 8)
    (tmp_path / "merged.ckpt").write_bytes(strategy_bytes(strategy))
    assert load_strategy(tmp_path / "merged.ckpt").stages == stages
    assert parse_strategy(strategy_bytes(strategy, 1), "x") == {1: stages[1]}


def test_a_stage_beside_the_merged_file_of_all(tmp_path: Path) -> None:
    strategy = Strategy(({"a": split((2,), 0)}, {"b": split((2,), 0)}), 2)
    (tmp_path / "merged_ckpt_strategy.ckpt").write_bytes(strategy_bytes(strategy))
    (tmp_path / "ckpt_strategy_rank_2.ckpt").write_bytes(strategy_bytes(strategy, 1))
    assert load_strategy(tmp_path).stages == strategy.stages


def layout_item(*fields: bytes) -> bytes:
    return field(3, field(1, b"w") + field(2, b"".join(fields)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no layout"),
        (b"\xff\xff", "not a strategy file"),
        (b"{", "not a strategy file"),
        (b'{"parallel_layout_item": {"w": {}}}', "not a strategy file"),
        (b'{"parallel_layout_item": {"w": {"dev_matrix":[2.5],"tensor_map":[0]}}}', "whole number"),
        (layout_item(field(1, varint_field(1, 2)), field(2, varint_field(1, 7))), "points outside"),
        (layout_item(field(1, varint_field(1, 0)), field(2, varint_field(1, -1))), "below 1"),
        (layout_item(field(3, varint_field(1, 5))), "split unevenly"),
        (layout_item() * 2, "appears twice"),
        (
            layout_item(field(1, varint_field(1, 1 << 40)), field(2, varint_field(1, -1))),
            "1099511627776 ranks; that cannot be",
        ),
    ],
)
def test_what_is_wrong_with_a_strategy_is_said(content: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_strategies({"s.ckpt": content}, "s.ckpt")


@pytest.mark.parametrize(
    ("matrix", "tensor_map", "opt", "words"),
    [
        ((2, 2), ((0,), (0,)), (0, 0), "uses a device axis twice"),
        ((4,), ((),), (1, 3), "does not divide"),
        ((2, 4), ((0,), ()), (1, 2), "are 4 apart"),
        ((4,), ((),), (0, 4), "opt_weight_shard_step is 0"),
        ((4,), (), (1, 4), "a scalar cannot be cut"),
    ],
)
def test_layouts_that_no_ranks_can_have(
    matrix: tuple,
    tensor_map: tuple,
    opt: tuple,
    words: str,  # type: ignore[type-arg]
) -> None:
    with pytest.raises(ValueError, match=words):
        Layout(matrix, tensor_map, *opt)


def test_stages_must_have_equally_many_ranks() -> None:
    strategy = {0: {"a": split((2,), 0)}, 1: {"b": split((4,), 0)}}
    contents = {
        f"ckpt_strategy_rank_{stage * 4}.ckpt": strategy_bytes(
            Strategy(tuple(strategy.values()), 2), stage
        )
        for stage in strategy
    }
    with pytest.raises(CheckpointError, match="disagree on the ranks of a stage"):
        read_strategies(contents, "here")


def test_crc_of_parts_joined() -> None:
    one, other = bytes(range(256)) * 3, b"\1" * 1001
    joined = joined_crc(zlib.crc32(one), zlib.crc32(other), len(other))
    assert joined == zlib.crc32(one + other)
