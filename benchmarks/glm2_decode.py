"""Greedy decoding of a small GLM2 on the processor: ours beside PyTorch, in one run.

    python -m benchmarks.glm2_decode [--rounds 5] [--answers 5] [--threads 2] [--products]

8 layers, hidden size 512, 8 heads of 64 channels, 2 key/value groups, feed-forward size 1408,
vocabulary 8192, float32: a prompt of 64 tokens and 128 new ones, one row, with a key/value cache.
The time of an answer includes the prompt's. Ours is what ``generate`` runs. The peers are Hugging
Face's GlmForCausalLM in a lean loop (its own ``generate`` is slower) as it is, and the same with
its linear layers computed by oneDNN from weights laid out for it beforehand. All have the same
weights, and must give the same tokens.

Each round starts one fresh process for each contestant, in turn, so that all share the machine's
moods; the choice of matrix kernels differs from process to process. A process reports the median of
its answers behind the first; shown are medians over the processes, and the median of the ratios
within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, List

import numpy as np

from benchmarks.figures import print_speeds
from glm2.config import ModelConfig
from glm2.weights import weight_shapes

PROMPT, NEW = 64, 128
CONFIG = ModelConfig(
    num_layers=8,
    hidden_size=512,
    ffn_hidden_size=1408,
    kv_channels=64,
    num_attention_heads=8,
    multi_query_group_num=2,
    padded_vocab_size=8192,
    seq_length=PROMPT + NEW,
    eos_token_id=8192,  # none: all answers have the same length
)
CONTESTANTS = ("ours", "torch + oneDNN", "torch")
PRODUCTS = ("products of MindSpore", "products of oneDNN")
"""The matrix products of a token and nothing else: what no arrangement of the rest can beat."""
LINEARS = (
    ("self_attention.query_key_value.weight", 512),
    ("self_attention.dense.weight", 512),
    ("mlp.dense_h_to_4h.weight", 512),
    ("mlp.dense_4h_to_h.weight", 1408),
)
"""The linear layers of a layer, and how many numbers each takes."""

Answer = Callable[[List[int]], List[int]]
"""The new tokens behind a prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each contestant")
    parser.add_argument("--answers", type=int, default=5, help="measured answers of a process")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peers")
    parser.add_argument(
        "--products", action="store_true", help="also measure a token's matrix products alone"
    )
    parser.add_argument("--contestant", choices=CONTESTANTS + PRODUCTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options.answers, options.threads)))
        return
    names = CONTESTANTS + (PRODUCTS if options.products else ())
    speeds: Dict[str, List[float]] = {name: [] for name in names}
    said = set()
    for number in range(options.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found = fresh_process(name, options)
            speeds[name].append(found["tokens_per_s"])
            if name in CONTESTANTS:
                said.add(tuple(found["tokens"]))
            print(
                f"round {number + 1}  {name:15} {found['tokens_per_s']:7.1f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    print_speeds(f"greedy decoding, {PROMPT} + {NEW} tokens, batch 1, float32", speeds, digits=1)
    if len(said) > 1:
        sys.exit("the contestants gave different tokens")


def fresh_process(name: str, options: argparse.Namespace) -> Dict[str, Any]:
    """Measure a contestant in a process and a folder of its own."""
    root = Path(__file__).parents[1]
    environ = {
        key: value
        for key, value in os.environ.items()
        # Both choose slower matrix kernels than this processor has, for whoever uses OpenBLAS.
        if key not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    }
    environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "GLOG_v": "3",
        "PYTHONPATH": str(root),
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, "-m", "benchmarks.glm2_decode", "--contestant", name,
                "--answers", str(options.answers), "--threads", str(options.threads),
            ],
            env=environ, cwd=folder, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    result: Dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, answers: int, threads: int) -> Dict[str, Any]:
    """Median speed over the answers behind the first, and the tokens of one."""
    if name in PRODUCTS:
        if name == PRODUCTS[0]:
            return {"tokens_per_s": products_of_mindspore(answers)}
        return {"tokens_per_s": products_of_onednn(answers, threads)}
    answer = ours() if name == "ours" else torch_answer(threads, onednn=name != "torch")
    prompt = np.random.default_rng(1).integers(3, CONFIG.padded_vocab_size, PROMPT).tolist()
    seconds: List[float] = []
    tokens: List[int] = []
    for _ in range(1 + answers):
        begun = time.perf_counter()
        tokens = answer(prompt)
        seconds.append(time.perf_counter() - begun)
    return {"tokens_per_s": NEW / median(seconds[1:]), "tokens": tokens}


def weights() -> Dict[str, np.ndarray]:
    """The same for all contestants; each matters to the result."""
    draw = np.random.default_rng(0)
    found: Dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(CONFIG).items():
        if "layernorm" in name:
            value = draw.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            value = draw.normal(0.0, 0.5, shape)
        else:
            value = draw.normal(0.0, 1.0 if "embedding" in name else shape[1] ** -0.5, shape)
        found[name] = value.astype(np.float32)
    return found


def ours() -> Answer:
    """What ``generate`` runs, with its own choice of threads: kernels take one a core."""
    import mindspore as ms

    from glm2.generate import Generator
    from glm2.model import Glm2
    from glm2.parallel import Layout, start
    from glm2.settings import Device

    start(Device(target="CPU"), Layout(), {})
    model = Glm2(CONFIG)
    values = weights()
    for parameter in model.get_parameters():
        parameter.set_data(ms.Tensor(values[parameter.name]))
    generator = Generator(model, batch=1, width=PROMPT, capacity=PROMPT + NEW)
    return lambda prompt: generator.generate([prompt], max_new_tokens=NEW)[0]


def products_of_mindspore(answers: int) -> float:
    """Tokens/s if a token were only its matrix products."""
    import mindspore as ms

    from benchmarks.glm2_products import Products
    from glm2.parallel import Layout, start
    from glm2.settings import Device

    start(Device(target="CPU"), Layout(), {})
    cell = Products(weights(), LINEARS, CONFIG.num_layers)
    x = ms.Tensor(np.ones((1, CONFIG.hidden_size), np.float32))
    return per_second(lambda: cell(x).asnumpy(), answers)


def products_of_onednn(answers: int, threads: int) -> float:
    """The same of the peer, with the weights laid out beforehand."""
    import torch

    torch.set_num_threads(threads)
    lay_out = torch.ops.mkldnn._reorder_linear_weight
    packed = {
        name: lay_out(torch.from_numpy(value), 1)
        for name, value in weights().items()
        if value.ndim == 2 and "embedding" not in name
    }

    def product(x: Any, name: str) -> Any:
        return torch.ops.mkldnn._linear_pointwise(x, packed[name], None, "none", [], "")

    def token() -> None:
        x = torch.ones((1, CONFIG.hidden_size))
        for number in range(CONFIG.num_layers):
            for name, inputs in LINEARS:
                x = product(x[:, :inputs], f"transformer.encoder.layers.{number}.{name}")
        product(x, "transformer.output_layer.weight")

    with torch.inference_mode():
        return per_second(token, answers)


def per_second(token: Callable[[], object], answers: int) -> float:
    """Median over as many runs of NEW calls as there are answers, behind a first one."""
    seconds: List[float] = []
    for _ in range(1 + answers):
        begun = time.perf_counter()
        for _ in range(NEW):
            token()
        seconds.append(time.perf_counter() - begun)
    return NEW / median(seconds[1:])


def torch_answer(threads: int, onednn: bool) -> Answer:
    """The peer: GlmForCausalLM of Hugging Face's transformers."""
    import torch
    from transformers import DynamicCache

    from tests.mindspore.glm2 import oracle

    torch.set_num_threads(threads)
    model = oracle.build(dataclasses.asdict(CONFIG), weights())
    model.set_attn_implementation("sdpa")
    if onednn:
        with_onednn(model)

    def answer(prompt: List[int]) -> List[int]:
        with torch.inference_mode():
            cache = DynamicCache(config=model.config)
            ids = torch.tensor([prompt])
            tokens: List[int] = []
            for _ in range(NEW):
                out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
                tokens.append(int(ids))
            return tokens

    return answer


def with_onednn(model: Any) -> None:
    """Let oneDNN compute the linear layers of a model, from weights in its own layout."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), 1)
            module.forward = lambda x, w=packed, b=module.bias: torch.ops.mkldnn._linear_pointwise(
                x, w, b, "none", [], ""
            )


if __name__ == "__main__":
    main()
