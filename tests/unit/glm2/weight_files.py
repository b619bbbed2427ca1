"""Small networks as files of weights, written by the libraries that such files come from."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List

from glm2.config import ModelConfig
from glm2.formats.hub import config_text
from glm2.weights import INV_FREQ, weight_shapes

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=24,
    kv_channels=8,
    num_attention_heads=2,
    multi_query_group_num=1,
    padded_vocab_size=32,
)
TABLE = "transformer.embedding.word_embeddings.weight"


def official(torch: Any, dtype: str, config: ModelConfig = CONFIG) -> Dict[str, Any]:
    """A state dict as the official model's: its names, and the rotary frequencies."""
    kind = getattr(torch, dtype)
    draw = torch.Generator().manual_seed(3)
    state = OrderedDict()
    for name, shape in weight_shapes(config).items():
        theirs = name.replace("embedding_table", "word_embeddings.weight")
        state[theirs] = torch.randn(shape, generator=draw).to(kind)
        if theirs == TABLE:
            turned = config.kv_channels // 2
            exponents = torch.arange(0, turned, 2).to(dtype=kind) / turned
            state[INV_FREQ] = 1.0 / (10000**exponents)
    return state


def save_shards(
    folder: Path, state: Dict[str, Any], end: str, save: Any, config: ModelConfig = CONFIG
) -> Path:
    """Write a state dict as a folder of shards with their index and config.json."""
    folder.mkdir()
    names = list(state)
    places: Dict[str, str] = {}
    for number in range(3):
        file = f"part-{number + 1}.{end}"
        part: List[str] = names[number::3]
        save({name: state[name] for name in part}, folder / file)
        places.update(dict.fromkeys(part, file))
    stem = "model" if end == "safetensors" else "pytorch_model"
    index = folder / f"{stem}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {n: places[n] for n in names}}))
    (folder / "config.json").write_text(config_text(config, "float16"))
    return index


def same_bits(torch: Any, a: Any, b: Any) -> bool:
    """Whether two PyTorch tensors have the same type, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.detach().contiguous().view(kind), b.contiguous().view(kind))
