"""All layouts train the same: losses, and the weights that their checkpoints merge to."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import mindspore as ms
import numpy as np
import pytest

from glm2.checkpoint import read_parameters
from tests.mindspore.glm2.launched import MODEL, STEPS, Launches, Shape

ONE = Shape()
DENSE = "transformer.encoder.layers.1.self_attention.dense."
DENSE_A, DENSE_B = DENSE + "mindpet_delta_lora_a", DENSE + "mindpet_delta_lora_b"
LAYOUTS = [
    pytest.param(Shape(data=2), marks=pytest.mark.thorough),
    pytest.param(Shape(model=2, more=("parallel_config.vocab_emb_dp=False",)), id="mp2-vocabulary"),
    pytest.param(Shape(data=2, model=2), marks=pytest.mark.thorough),
    pytest.param(Shape(data=2, shared=True), marks=pytest.mark.thorough),
    Shape(data=2, model=2, shared=True),
    pytest.param(Shape(model=4), id="mp4-two-groups"),
]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_a_layout_trains_as_one_process_does(
    launches: Launches, trained: Callable[[Shape], str], shape: Shape
) -> None:
    expected, found = trained(ONE), trained(shape)
    losses = launches.losses(expected)
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.3, "it learns"
    for rank in range(shape.ranks):
        np.testing.assert_allclose(launches.losses(found, rank), losses, rtol=1e-5)
    weights, others = launches.weights(expected), launches.weights(found)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        # The second moments are squares of small numbers; all others are weights or like them.
        np.testing.assert_allclose(others[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_mindspores_own_tools_merge_the_checkpoints_to_the_very_same_weights(
    launches: Launches, trained: Callable[[Shape], str], tmp_path: Path
) -> None:
    shape = Shape(data=2, model=2, shared=True)
    collected = launches.collected(trained(shape))
    strategy = tmp_path / "merged_strategy.ckpt"
    ms.merge_pipeline_strategys(str(collected / "strategy"), str(strategy))
    ms.transform_checkpoints(
        str(collected / "checkpoint"), str(tmp_path / "out"), "whole", str(strategy), None
    )
    (file,) = (tmp_path / "out").rglob("*.ckpt")
    theirs, ours = read_parameters(file), read_parameters(collected / "merged.ckpt")
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name].asnumpy(), value.asnumpy(), name)


def test_adapters_train_alike_and_checkpoints_hold_the_frozen_weights_too(
    launches: Launches, trained: Callable[[Shape], str]
) -> None:
    lora = (MODEL + "pet_config.pet_type=lora", MODEL + "pet_config.target_modules=.*(value|dense)")
    expected = trained(Shape(more=lora))
    found = trained(Shape(model=2, more=lora))
    # With dropout: all ranks leave out the same numbers.
    np.testing.assert_allclose(launches.losses(found), launches.losses(expected), rtol=1e-5)
    weights, others = launches.weights(expected), launches.weights(found)
    assert weights.keys() == others.keys()
    assert {"transformer.output_layer.weight", DENSE_A, f"adam_v.{DENSE_A}"} <= others.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(others[name], value, rtol=0, atol=1e-5, err_msg=name)
    assert np.abs(weights[DENSE_B]).max() > 1e-4, "it was trained"
