"""Every byte of a shard lands where a merge would put it, in whatever pieces it comes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.checkpoints import landing
from orchestrator.checkpoints.checkpoint import Reading, open_checkpoint
from orchestrator.checkpoints.geometry import whole as all_of
from orchestrator.checkpoints.landing import Landings, units
from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.output import OutputFile
from tests.unit.checkpoints.any_layout import layouts
from tests.unit.checkpoints.sets import whole, write_set


@settings(max_examples=60, deadline=None)
@given(
    layout=layouts(),
    most=st.sampled_from([1, 700, 4000, 1 << 20]),
    cut=st.sampled_from([100, 1 << 20]),
    short=st.sampled_from([1, 1 << 16]),
    entire=st.booleans(),
    chunk=st.integers(1, 5000),
)
def test_the_merged_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    layout: Layout,
    most: int,
    cut: int,
    short: int,
    entire: bool,
    chunk: int,
) -> None:
    model = {"a": whole("Float32", (3,), 2), "w": whole("Float16", (16, 16, 16), 1)}
    try:
        layout.piece_shape((16, 16, 16))
    except ValueError:
        return
    root = tmp_path_factory.mktemp("landing")
    made = write_set(root, model, [{"a": Layout(layout.dev_matrix, ((),)), "w": layout}])
    expected = merge(made.shards, made.strategy, root / "merged.ckpt").output.read_bytes()

    checkpoint = open_checkpoint(made.shards, made.strategy, Reading())
    tensors = checkpoint.tensors
    laid = OutputFile(root / "out.ckpt", tuple((t, all_of(t.shape)) for t in tensors)).layout()
    path = root / "out.ckpt"
    path.write_bytes(bytes(laid.size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landing, "_MOST", cut)
        patch.setattr(landing, "_SHORT_RUN", short)
        landings = Landings(tensors, laid.segments, os.open(path, os.O_RDWR), laid.size)
        for rank, file in checkpoint.files.items():
            data = memoryview(made.file(rank).read_bytes())
            found = units(tensors, rank, size=file.size, most=most, entire=entire)
            if entire:
                ranges = [unit.ranges[0] for unit in found]
                assert sum(length for _, length in ranges) == file.size
                assert all(sum(one) == other[0] for one, other in zip(ranges, ranges[1:]))
            for unit in found:
                for each in unit.landings:
                    assert any(
                        start <= each.offset and each.offset + each.length <= start + length
                        for start, length in unit.ranges
                    )
                    for at in range(0, each.length, chunk):
                        step = min(chunk, each.length - at)
                        part = data[each.offset + at :][:step]
                        landings.write(each, each.start + at, part)
        landings.close()
    with path.open("r+b") as out:
        for offset, header in laid.fixed:
            out.seek(offset)
            out.write(header)
    assert path.read_bytes() == expected
