"""What PyTorch computes of the same networks: run as a program of its own, with a folder.

MindSpore and PyTorch each bring thread pools and signal handlers; apart they cannot disturb
each other. Reads ``<case>.json`` and ``<case>.npz`` of the folder, writes ``<case>.out.npz``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch
from transformers import GlmConfig, GlmForCausalLM

Arrays = Dict[str, np.ndarray]

_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_REST = {
    "transformer.embedding.embedding_table": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}


def build(config: Dict[str, Any], weights: Arrays) -> GlmForCausalLM:
    """The network of a ``ModelConfig`` (as a dict) with ChatGLM2's weights."""
    model = GlmForCausalLM(
        GlmConfig(
            vocab_size=config["padded_vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["ffn_hidden_size"],
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["multi_query_group_num"],
            head_dim=config["kv_channels"],
            rms_norm_eps=config["layernorm_epsilon"],
            max_position_embeddings=config["seq_length"],
            attention_bias=config["add_qkv_bias"],
            tie_word_embeddings=False,
            pad_token_id=0,
            attn_implementation="eager",
        )
    )
    state = {}
    for name, value in weights.items():
        for part, piece in zip(theirs(name, config), split(name, value, config)):
            state[part] = torch.from_numpy(piece.copy())
    model.load_state_dict(state)  # strict: each weight of either side has its place
    return model.eval()


def theirs(name: str, config: Dict[str, Any]) -> List[str]:
    """Names in ``GlmForCausalLM`` of one weight of ChatGLM2: the fused projection is three."""
    if name in _REST:
        return [_REST[name]]
    number, rest = name[len("transformer.encoder.layers.") :].split(".", 1)
    if rest in _LAYER:
        return [f"model.layers.{number}.{_LAYER[rest]}"]
    kind = rest.rpartition(".")[2]
    return [f"model.layers.{number}.self_attn.{part}_proj.{kind}" for part in "qkv"]


def split(name: str, value: np.ndarray, config: Dict[str, Any]) -> List[np.ndarray]:
    if "query_key_value" not in name:
        return [value]
    queries = config["num_attention_heads"] * config["kv_channels"]
    keys = config["multi_query_group_num"] * config["kv_channels"]
    return np.split(value, [queries, queries + keys])


def ours(model: GlmForCausalLM, names: List[str], config: Dict[str, Any], what: str) -> Arrays:
    """Weights or gradients (``what``: data or grad) under ChatGLM2's names."""
    found = dict(model.named_parameters())
    return {
        name: np.concatenate(
            [getattr(found[part], what).detach().numpy() for part in theirs(name, config)]
        )
        for name in names
    }


def answer(case: Dict[str, Any], given: Arrays) -> Arrays:
    """Logits, loss, gradients, greedy tokens, and the weights and losses of some AdamW steps."""
    config = case["config"]
    weights = {name[2:]: value for name, value in given.items() if name.startswith("w:")}
    names = list(weights)
    model = build(config, weights)
    ids, labels = torch.from_numpy(given["ids"]).long(), torch.from_numpy(given["labels"]).long()
    seen = torch.from_numpy(given["seen"]).long()
    prompts = torch.from_numpy(given["prompts"]).long()
    mask = torch.from_numpy(given["prompts_seen"]).long()
    result: Arrays = {}
    with torch.no_grad():
        tokens = model.generate(
            prompts, attention_mask=mask, max_new_tokens=case["new"], min_new_tokens=case["new"],
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    result["tokens"] = tokens[:, prompts.shape[1] :].numpy()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=case["lr"], betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    losses = []
    for step in range(case["steps"]):
        optimizer.zero_grad()
        out = model(input_ids=ids, attention_mask=seen, labels=labels)
        out.loss.backward()
        losses.append(float(out.loss.detach()))
        gradients = ours(model, names, config, "grad")
        result.update({f"g{step}:{name}": value for name, value in gradients.items()})
        if step == 0:
            result["logits"] = out.logits.detach().numpy()
        optimizer.step()
        changed = ours(model, names, config, "data")
        result.update({f"w{step}:{name}": value for name, value in changed.items()})
    result["losses"] = np.array(losses)
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(2)
    for file in sorted(folder.glob("*.json")):
        with np.load(file.with_suffix(".npz")) as given:
            result = answer(json.loads(file.read_text()), dict(given))
        np.savez(file.with_suffix(".out.npz"), **result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
