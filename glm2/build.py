"""The network of a run: made, given adapters, recompute and weights, as the settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import mindspore as ms

from glm2.checkpoint import load_weights
from glm2.division import check_divisible, division_of
from glm2.errors import CheckpointError
from glm2.lora import add_adapters, load_adapted, merge
from glm2.metrics import say, warn
from glm2.model import Glm2
from glm2.parallel import ONE_RANK, Layout
from glm2.settings import Settings
from glm2.tensor_parallel import divided


def build_model(settings: Settings, weights: Optional[Path], layout: Layout = ONE_RANK) -> Glm2:
    """This rank's part of the network with the weights of a file, or fresh ones.

    With ``pet_config`` it has adapters. For eval and predict they are merged into the weights:
    each token then costs what it costs without LoRA.
    """
    check_divisible(
        settings.model, layout.model_parallel, vocab_emb_dp=settings.parallel.vocab_emb_dp
    )
    training = settings.run_mode in ("train", "finetune")
    # The same seed on all ranks: they begin with the same weights.
    ms.set_seed(settings.seed)
    model = Glm2(settings.model)
    add_adapters(model)
    if weights and settings.model.pet_config:
        base = settings.model.checkpoint_name_or_path
        say(f"loaded {load_adapted(model, weights, base)}")
    elif weights:
        load_weights(model, weights)
        say(f"loaded {weights}")
    else:
        _warn_of_random_weights(settings, training)
    if not training:
        merge(model)
    elif settings.model.pet_config:
        adapters = sum(p.size for p in model.trainable_params())
        frozen = sum(p.size for p in model.get_parameters()) - adapters
        say(f"LoRA: {adapters:,} parameters are trained, {frozen:,} are frozen")
    if layout.model_parallel > 1:
        model = divided(model, division_of(settings, layout), layout)
    if settings.recompute and training:
        for layer in model.transformer.encoder.layers:
            layer.recompute()
    return model


def _warn_of_random_weights(settings: Settings, training: bool) -> None:
    if not training:
        warn("no weights are loaded (--load_checkpoint): the answers come from a random model")
    elif settings.model.pet_config and settings.resume and settings.checkpoints.only_trainable:
        raise CheckpointError(
            "training cannot go on from adapters alone, without the weights they belong to",
            hint="name the base weights in model.model_config.checkpoint_name_or_path",
        )
    elif settings.model.pet_config and not settings.resume:
        warn(
            "no weights are loaded (--load_checkpoint): the adapters are trained on a random model"
        )
