"""A step of training a small GLM2 on the processor: ours beside PyTorch, in one run.

    python -m benchmarks.glm2_train [--rounds 5] [--steps 6] [--threads 2] [--prompt 64]

8 layers, hidden size 512, 8 heads of 64 channels, 2 key/value groups, feed-forward size 1408,
vocabulary 8192; 8 rows of 193 tokens, float32: forward, backward, clipping and AdamW. Ours is the
very step of the trainer, with its inputs from NumPy and its results back there. The peers are
Hugging Face's GlmForCausalLM as it is, and the same with the products of its linear layers, forward
and backward, computed by oneDNN, which PyTorch itself does not use for float32. They take PyTorch's
fused AdamW and ours.

The first 64 tokens of each row are the prompt, which is not learned. Ours does not compute what is
only looked at for learning it: the prompt's logits and what leads to them alone. The peers, given
the same labels, compute it; with ``--prompt 1`` all tokens are learned, and ours computes all.

Each round starts one fresh process for each contestant, in turn, so that all share the machine's
moods; the choice of matrix kernels differs from process to process. A process reports the median of
its steps behind the first 30: MindSpore's kernels spend up to so many runs, in fives, on trying
how finely to cut their work. Shown are medians over the processes, and the median of the ratios
within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any, Callable, Dict, List

import numpy as np

from benchmarks.figures import print_speeds

ROWS, LENGTH, VOCABULARY = 8, 193, 8192
WARM_UP = 30
"""Steps that are not measured."""
CONTESTANTS = ("ours", "torch + oneDNN", "torch")

Step = Callable[[np.ndarray, np.ndarray], float]
"""Trains on token ids and labels, and returns the loss."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each contestant")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a process")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peers")
    parser.add_argument(
        "--prompt", type=int, default=64, help="tokens of a row that are not learned"
    )
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options)))
        return
    speeds: Dict[str, List[float]] = {name: [] for name in CONTESTANTS}
    for number in range(options.rounds):
        for name in CONTESTANTS[number % 3 :] + CONTESTANTS[: number % 3]:
            found = fresh_process(name, options)
            speeds[name].append(found["tokens_per_s"])
            print(
                f"round {number + 1}  {name:15} {found['tokens_per_s']:7.0f} tokens/s  "
                f"loss {found['losses'][0]:.4f} → {found['losses'][-1]:.4f}",
                file=sys.stderr,
                flush=True,
            )
    print_speeds(f"training step, {ROWS} × {LENGTH} tokens, float32", speeds, digits=0)


def fresh_process(name: str, options: argparse.Namespace) -> Dict[str, Any]:
    """Measure a contestant in a process of its own."""
    environ = {
        key: value
        for key, value in os.environ.items()
        # Both choose slower matrix kernels than this processor has, for whoever uses OpenBLAS.
        if key not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    }
    environ |= {"OMP_NUM_THREADS": str(options.threads), "GLOG_v": "3"}
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.glm2_train", "--contestant", name,
            "--steps", str(options.steps), "--threads", str(options.threads),
            "--prompt", str(options.prompt),
        ],
        env=environ, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result: Dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, options: argparse.Namespace) -> Dict[str, Any]:
    """Median speed over the steps behind the warm-up, and the losses of all."""
    if name == "ours":
        step = ours(options.prompt)
    else:
        step = torch_step(options.threads, onednn=name != "torch")
    draw = np.random.default_rng(0)
    seconds, losses = [], []
    for _ in range(WARM_UP + options.steps):
        ids = draw.integers(0, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)
        labels = ids.copy()
        labels[:, : options.prompt] = -100
        begun = time.perf_counter()
        losses.append(step(ids, labels))
        seconds.append(time.perf_counter() - begun)
    return {"tokens_per_s": ROWS * LENGTH / median(seconds[WARM_UP:]), "losses": losses}


def ours(prompt: int = 64) -> Step:
    """The step of ``glm2.trainer``, with its own choice of threads: kernels take one a core."""
    import mindspore as ms

    from glm2.model import Glm2
    from glm2.parallel import Layout, start
    from glm2.settings import find_config, load_settings
    from glm2.train_step import StepNumbers, make_step

    shape = {
        "num_layers": 8, "hidden_size": 512, "ffn_hidden_size": 1408, "kv_channels": 64,
        "num_attention_heads": 8, "multi_query_group_num": 2, "padded_vocab_size": VOCABULARY,
        "seq_length": LENGTH,
    }  # fmt: skip
    overrides = [f"model.model_config.{key}={value}" for key, value in shape.items()]
    overrides += [
        f"train_dataset.max_source_length={prompt}",
        f"train_dataset.max_target_length={LENGTH - prompt - 1}",
    ]
    settings = load_settings(find_config("tiny_cpu"), overrides)
    start(settings.device, Layout(), {})
    ms.set_seed(0)
    step = make_step(Glm2(settings.model), settings, Layout())
    done = 0

    def run(ids: np.ndarray, labels: np.ndarray) -> float:
        nonlocal done
        done += 1
        return step.run(ids, labels, StepNumbers(1e-4, done, 1.0, False)).loss

    return run


def torch_step(threads: int, onednn: bool) -> Step:
    """The peer: GlmForCausalLM of Hugging Face's transformers."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GlmForCausalLM(
        GlmConfig(
            num_hidden_layers=8, hidden_size=512, intermediate_size=1408, head_dim=64,
            num_attention_heads=8, num_key_value_heads=2, vocab_size=VOCABULARY,
            partial_rotary_factor=0.5, attention_bias=True, tie_word_embeddings=False,
            rms_norm_eps=1e-5, use_cache=False, pad_token_id=0,
        )
    )  # fmt: skip
    model.train()
    if onednn:
        with_onednn(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )

    def run(ids: np.ndarray, labels: np.ndarray) -> float:
        optimizer.zero_grad(set_to_none=True)
        found = model(
            input_ids=torch.from_numpy(ids).long(), labels=torch.from_numpy(labels).long()
        )
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(found.loss.detach())

    return run


def with_onednn(model: Any) -> None:
    """Let oneDNN compute the linear layers of a model: y = x Wᵀ, and the two products of its
    gradient."""
    import torch

    product = torch.ops.mkldnn._linear_pointwise

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
            ctx.save_for_backward(x, weight)
            ctx.has_bias = bias is not None
            return product(x, weight, bias, "none", [], "")

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, weight = ctx.saved_tensors
            dx = product(dy, weight.t(), None, "none", [], "")
            flat = dy.reshape(-1, dy.shape[-1])
            dw = product(flat.t(), x.reshape(-1, x.shape[-1]).t(), None, "none", [], "")
            return dx, dw, flat.sum(0) if ctx.has_bias else None

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = lambda x, m=module: Linear.apply(x, m.weight, m.bias)


if __name__ == "__main__":
    main()
