"""LoRA: which adapters of a checkpoint belong to which weight, W' = W + alpha / rank · B A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from orchestrator.checkpoints.assemble import WholeTensor, is_adapter, is_optimizer_state
from orchestrator.errors import CheckpointError

ADDABLE = ("Float16", "BFloat16", "Float32")

_PAIRS = (
    (".mindpet_delta_lora_a", ".mindpet_delta_lora_b"),  # MindFormers with MindPet
    (".mindpet_delta_lora_A", ".mindpet_delta_lora_B"),  # some releases of MindPet
    (".lora_a", ".lora_b"),
    (".lora_A.weight", ".lora_B.weight"),  # PEFT
)


@dataclass(frozen=True)
class Adapter:
    """``down`` (A, rank × inputs) and ``up`` (B, outputs × rank) of one weight, and their scale."""

    down: WholeTensor
    up: WholeTensor
    scale: float


def pair_adapters(
    tensors: Sequence[WholeTensor], alpha: float
) -> Tuple[List[WholeTensor], Dict[str, Adapter]]:
    """Split a checkpoint into its other tensors and the adapters, by the weight they change.

    Optimizer state of adapters is left out, as nothing is left for it to move. Raises
    CheckpointError when an adapter has no partner or no weight, or the shapes do not fit.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    kept = [tensor for tensor in tensors if not is_adapter(tensor.name)]
    adapters: Dict[str, Adapter] = {}
    for tensor in tensors:
        if not is_adapter(tensor.name) or is_optimizer_state(tensor.name):
            continue
        owner, down, up = _pair(tensor.name, by_name)
        weight = by_name.get(owner)
        if weight is None:
            raise CheckpointError(
                f"adapter {tensor.name}: expected the weight {owner}, found none",
                hint="give the base weights with --lora_base",
            )
        adapters[owner] = Adapter(down, up, alpha / down.shape[0] if down.shape[:1] else 0.0)
        _check_fit(weight, adapters[owner])
    if not adapters:
        raise CheckpointError("the checkpoint holds no LoRA adapter", hint="leave --lora_alpha out")
    return kept, adapters


def _pair(name: str, by_name: Mapping[str, WholeTensor]) -> Tuple[str, WholeTensor, WholeTensor]:
    for down, up in _PAIRS:
        suffix = next((end for end in (down, up) if name.endswith(end)), "")
        if not suffix:
            continue
        stem = name[: -len(suffix)]
        missing = next((stem + end for end in (down, up) if stem + end not in by_name), None)
        if missing:
            raise CheckpointError(f"adapter {name}: expected its partner {missing}, found none")
        return f"{stem}.weight", by_name[stem + down], by_name[stem + up]
    raise CheckpointError(
        f"adapter {name} is of a kind that cannot be merged into a weight",
        hint="LoRA adapters named lora_a/lora_b, mindpet_delta_lora_a/_b or lora_A/lora_B can",
    )


def _check_fit(weight: WholeTensor, adapter: Adapter) -> None:
    down, up = adapter.down.shape, adapter.up.shape
    fits = (
        len(weight.shape) == len(down) == len(up) == 2
        and down[0] == up[1]
        and weight.shape == (up[0], down[1])
    )
    if not fits:
        raise CheckpointError(
            f"parameter {weight.name} {list(weight.shape)} and its adapters "
            f"{list(up)} x {list(down)} do not fit together"
        )
    for tensor in (weight, adapter.down, adapter.up):
        if tensor.dtype not in ADDABLE:
            raise CheckpointError(
                f"parameter {tensor.name} is {tensor.dtype}; adapters can be merged in "
                f"{', '.join(ADDABLE)} only"
            )
