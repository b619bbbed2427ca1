"""LoRA adapters merged into their weights while the shards are merged: W + alpha / rank · B A."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Mapping

import numpy as np
import pytest

from orchestrator.checkpoints.gather import as_float32, from_float32
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.shards import index_file
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import Whole, ckpt_bytes, split, write_set

LAYOUTS = {
    "q.weight": split((2, 2), 0, -1),
    "dense.weight": split((2, 2), -1, 0),
    "q.mindpet_delta_lora_a": split((2, 2), -1, -1),
    "q.mindpet_delta_lora_b": split((2, 2), 0, -1),
    "dense.mindpet_delta_lora_a": split((2, 2), -1, 0),
    "dense.mindpet_delta_lora_b": split((2, 2), -1, -1),
}
SHAPES = {
    "q.weight": (400, 96),
    "dense.weight": (96, 8192),
    "q.mindpet_delta_lora_a": (4, 96),
    "q.mindpet_delta_lora_b": (400, 4),
    "dense.mindpet_delta_lora_a": (4, 8192),
    "dense.mindpet_delta_lora_b": (96, 4),
}


def model_of(dtype: str) -> Dict[str, Whole]:
    rng = np.random.default_rng(3)
    made = {}
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape).astype(np.float32)
        stored = from_float32(values, dtype)
        kind = {"Float16": np.float16, "BFloat16": np.uint16, "Float32": np.float32}[dtype]
        made[name] = Whole(dtype, stored.view(kind).reshape(shape))
    made["norm"] = Whole("Float32", rng.standard_normal(96).astype(np.float32))
    return made


def values(model: Mapping[str, Whole], name: str) -> np.ndarray:
    tensor = model[name]
    data = tensor.values.reshape(-1).view(np.uint8)
    return as_float32(data, tensor.dtype).reshape(tensor.values.shape)


def expected(model: Mapping[str, Whole], stem: str, scale: float) -> np.ndarray:
    up = values(model, f"{stem}.mindpet_delta_lora_b").astype(np.float64)
    down = values(model, f"{stem}.mindpet_delta_lora_a").astype(np.float64)
    return values(model, f"{stem}.weight") + scale * (up @ down)


def read(path: Path, name: str) -> np.ndarray:
    stored = index_file(path).tensors[name]
    (segment,) = stored.segments
    data = np.fromfile(path, np.uint8, segment.length, offset=segment.offset)
    return as_float32(data, stored.dtype).reshape(stored.shape)


TOLERANCE = {"Float32": 1e-6, "Float16": 2**-10, "BFloat16": 2**-7}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_adapters_in_the_same_set(tmp_path: Path, dtype: str) -> None:
    model = model_of(dtype)
    model["adam_m.q.mindpet_delta_lora_a"] = Whole("Float32", np.ones((4, 96), np.float32))
    made = write_set(tmp_path / "set", model, [LAYOUTS])
    report = merge(made.shards, made.strategy, tmp_path / "out", lora_alpha=8, verify=True)

    assert set(index_file(report.output).tensors) == {"q.weight", "dense.weight", "norm"}
    for stem in ("q", "dense"):
        found = read(report.output, f"{stem}.weight")
        wanted = expected(model, stem, 2.0)
        np.testing.assert_allclose(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_adapters_alone_and_a_file_of_base_weights(tmp_path: Path) -> None:
    model = model_of("Float16")
    base = tmp_path / "base.ckpt"
    weights = ("q.weight", "dense.weight", "norm")
    # A base that was trained here: its moments and its progress are not the set's.
    state = {"adam_m.norm": model["norm"], "step_num": Whole("Int64", np.array(3))}
    base.write_bytes(ckpt_bytes({**{name: model[name] for name in weights}, **state}))
    adapters = {name: tensor for name, tensor in model.items() if "lora" in name}
    adapters["step_num"] = Whole("Int64", np.array(5))
    layouts = {name: layout for name, layout in LAYOUTS.items() if "lora" in name}
    made = write_set(tmp_path / "set", adapters, [layouts])
    report = merge(
        made.shards, made.strategy, tmp_path / "out", lora_alpha=4, lora_base=base, verify=True
    )
    found = read(report.output, "q.weight")
    np.testing.assert_allclose(found, expected(model, "q", 1.0), rtol=2**-10, atol=2**-10)
    assert read(report.output, "norm").tobytes() == model["norm"].values.tobytes()
    assert set(index_file(report.output).tensors) == {*weights, "step_num"}


def test_adapters_with_large_letters_are_the_same(tmp_path: Path) -> None:
    model = model_of("Float32")
    large = {
        name[:-1] + name[-1].upper() if "lora" in name else name: tensor
        for name, tensor in model.items()
    }
    source = tmp_path / "large.ckpt"
    source.write_bytes(ckpt_bytes(large))
    report = merge(source, None, tmp_path / "out", lora_alpha=8, verify=True)
    found = read(report.output, "q.weight")
    np.testing.assert_allclose(found, expected(model, "q", 2.0), rtol=1e-6, atol=1e-6)


def test_adapters_can_be_cut_for_another_layout(tmp_path: Path) -> None:
    from orchestrator.checkpoints.target import Words

    model = model_of("Float32")
    made = write_set(tmp_path / "set", model, [LAYOUTS])
    merge(
        made.shards,
        made.strategy,
        tmp_path / "out",
        lora_alpha=4,
        target=Words(1, 4, False),
        verify=True,
    )
    slices = [
        read(tmp_path / "out" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", "dense.weight")
        for rank in range(4)
    ]
    wanted = expected(model, "dense", 1.0)
    np.testing.assert_allclose(np.concatenate(slices, axis=1), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q.mindpet_delta_lora_b": None}, "expected its partner q.mindpet_delta_lora_b"),
        ({"q.weight": None}, "expected the weight q.weight, found none"),
        ({"q.mindpet_delta_lora_b": (400, 5)}, "do not fit together"),
        ({"q.weight": (96, 400)}, "do not fit together"),
        ({"q.lora_strange": (2, 2)}, "is of a kind that cannot be merged"),
        ({name: None for name in SHAPES if "lora" in name}, "holds no LoRA adapter"),
    ],
)
def test_adapters_that_cannot_be_merged(
    tmp_path: Path, change: Dict[str, object], words: str
) -> None:
    model = model_of("Float32")
    for name, shape in change.items():
        model.pop(name, None)
        if shape:
            model[name] = Whole("Float32", np.ones(shape, np.float32))  # type: ignore[call-overload]
    path = tmp_path / "all.ckpt"
    path.write_bytes(ckpt_bytes(model))
    with pytest.raises(CheckpointError, match=words):
        merge(path, None, tmp_path / "out", lora_alpha=8)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F800000, 0x7FC00001], np.uint32)
    stored = from_float32(bits.view(np.float32), "BFloat16").view(np.uint16)
    assert [hex(value) for value in stored] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7fc0"]
