"""What a configuration means in numbers: layers, parameters, and the memory of a rank.

All of it is arithmetic on the configuration: no weights are made, and MindSpore is not needed.
Weights, gradients and optimizer state are exact; activations are an estimate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from glm2.adapters import is_adapter
from glm2.config import ModelConfig
from glm2.division import rank_groups, rank_shapes
from glm2.errors import ConfigError
from glm2.settings import Dataset, Settings
from glm2.targets import targets_in_row
from glm2.weights import Shape

SCHEMA = 1
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STATE_BYTES = 8
"""AdamW's two float32 moments of a trained number."""
RANKS = 8
"""Ranks that layouts are shown for where the configuration leaves their number open."""


@dataclass(frozen=True)
class Part:
    """A weight, or all of a kind: ``count`` layers have ``shape`` each."""

    name: str
    shape: Shape
    count: int

    @property
    def parameters(self) -> int:
        """Numbers in all of them together."""
        return self.count * prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """How ranks divide the work."""

    data_parallel: int
    model_parallel: int
    optimizer_shard: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank in training."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """An estimate: what the layers keep for the backward pass, and the logits."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def parts(config: ModelConfig) -> List[Part]:
    """The weights in order; those of the layers, which are all alike, counted."""
    found: Dict[str, Part] = {}
    for name, shape in rank_shapes(config).items():
        head, _, rest = name.partition(".layers.")
        kind = f"{head}.layers.N.{rest.partition('.')[2]}" if rest else name
        count = found[kind].count + 1 if kind in found else 1
        found[kind] = Part(kind, shape, count)
    return list(found.values())


def training_memory(settings: Settings, layout: Layout, batch: int) -> Memory:
    """Bytes of one rank in training with ``batch`` rows at a time.

    Raises ConfigError when the layers cannot be divided so.
    """
    config = settings.model
    shapes = rank_shapes(config, layout.model_parallel, vocab_emb_dp=settings.parallel.vocab_emb_dp)
    kind = BYTES[config.param_init_type]
    adapters = sum(prod(shape) for name, shape in shapes.items() if is_adapter(name))
    weights = sum(map(prod, shapes.values())) - adapters
    trained = adapters or weights
    state = trained * STATE_BYTES
    if layout.optimizer_shard:
        state = -(-state // layout.data_parallel)
    gradient = BYTES["float32"] if adapters else kind
    if settings.accumulation > 1:  # their sums over the batches of a step
        gradient += BYTES["float32"]
    return Memory(
        weights=weights * kind + adapters * BYTES["float32"],
        gradients=trained * gradient,
        optimizer=state,
        activations=activations(
            settings, layout.model_parallel, batch, recompute=settings.recompute
        ),
    )


def activations(settings: Settings, model_parallel: int, batch: int, *, recompute: bool) -> int:
    """An estimate of the bytes that are kept for the backward pass of ``batch`` rows.

    Counted are the inputs of each operation of a layer in their type, and the logits of the tokens
    that are learned. With recompute a layer keeps its input alone, and one layer at a time has
    all of it. MindSpore on CPU frees little
    before a step ends: it was seen to take four to five times as much, with recompute too.
    """
    config = settings.model
    size = BYTES[config.compute_dtype]
    hidden, ffn = config.hidden_size, config.ffn_hidden_size // model_parallel
    heads = config.num_attention_heads // model_parallel
    query = heads * config.kv_channels
    kv = rank_groups(config, model_parallel) * config.kv_channels
    norms = 2 * hidden * (size + size + BYTES["float32"])  # input, output, and float32 between
    attention = size * (3 * query + 4 * kv)  # projected, turned, and mixed
    # Scores and their softmax in float32, and the latter again in the compute type.
    pairs = heads * config.seq_length * (2 * BYTES["float32"] + (size if size < 4 else 0))
    feed_forward = size * 5 * ffn  # both halves, the sigmoid, and two products
    layer = norms + attention + pairs + feed_forward
    # Of ranks that share the layers, also what the attention's sum gave: it is not sent again.
    kept = size * hidden * (2 if model_parallel > 1 else 1)
    layers = config.num_layers * kept + layer if recompute else config.num_layers * layer
    # Logits, their float32 copy, the logarithm of their softmax, and the gradient of the first.
    logits = config.padded_vocab_size // model_parallel * (2 * size + 2 * BYTES["float32"])
    return batch * (config.seq_length * layers + targets_in_row(settings) * logits)


def cache_memory(config: ModelConfig, rows: int, columns: int) -> int:
    """Bytes of the key/value cache of ``rows`` answers of up to ``columns`` tokens."""
    return 2 * config.num_layers * rows * columns * config.kv_size * BYTES[config.compute_dtype]


def own_layout(settings: Settings) -> Layout:
    """The layout that the configuration asks for; an open number of ranks is taken as RANKS."""
    if settings.use_parallel is False:
        return Layout(1, 1, optimizer_shard=False)
    parallel = settings.parallel
    data = parallel.data_parallel or max(RANKS // parallel.model_parallel, 1)
    return Layout(data, parallel.model_parallel, parallel.optimizer_shard and data > 1)


def layouts(settings: Settings) -> Iterator[Layout]:
    """The layouts of as many ranks that the network can be divided into."""
    own = own_layout(settings)
    ranks = max(own.data_parallel * own.model_parallel, RANKS)
    for model in range(1, ranks + 1):
        if ranks % model:
            continue
        try:
            rank_shapes(settings.model, model, vocab_emb_dp=settings.parallel.vocab_emb_dp)
        except ConfigError:
            continue
        for shard in (False, True):
            if ranks // model > 1 or not shard:
                yield Layout(ranks // model, model, shard)


def as_dict(name: str, settings: Settings) -> Dict[str, Any]:
    """Everything of a configuration, for programs."""
    config = settings.model
    found = parts(config)
    adapters = sum(part.parameters for part in found if is_adapter(part.name))
    total = sum(part.parameters for part in found)
    own = own_layout(settings)
    answer: Dict[str, Any] = {
        "schema": SCHEMA,
        "config": name,
        "model": {
            key: getattr(config, key)
            for key in (
                "num_layers", "hidden_size", "ffn_hidden_size", "kv_channels",
                "num_attention_heads", "groups", "padded_vocab_size", "seq_length",
                "param_init_type", "compute_dtype",
            )
        },
        "parts": [
            {"name": p.name, "shape": list(p.shape), "count": p.count, "parameters": p.parameters}
            for p in found
        ],
        "parameters": {
            "total": total,
            "base": total - adapters,
            "adapters": adapters,
            "trained": adapters or total,
        },
        "predict": {
            "weights": (total - adapters) * BYTES[config.param_init_type],
            "cache": cache_memory(config, config.batch_size, _columns(config)),
            "rows": config.batch_size,
            "columns": _columns(config),
        },
    }  # fmt: skip
    if settings.train:
        batch = settings.train.batch_size
        answer["train"] = {
            **asdict(own),
            "batch_size": batch,
            "recompute": settings.recompute,
            **_with_total(training_memory(settings, own, batch)),
            "activations_with_recompute": activations(
                settings, own.model_parallel, batch, recompute=True
            ),
            "activations_without_recompute": activations(
                settings, own.model_parallel, batch, recompute=False
            ),
        }
        answer["layouts"] = [
            {**asdict(one), **_with_total(training_memory(settings, one, batch))}
            for one in layouts(settings)
        ]
    return answer


def table(name: str, settings: Settings) -> str:
    """Everything of a configuration, for people."""
    config = settings.model
    lines = [
        f"{name}: {config.num_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_attention_heads} heads of {config.kv_channels} in {config.groups} key/value "
        f"groups,",
        f"feed-forward {config.ffn_hidden_size}, vocabulary {config.padded_vocab_size}, sequence "
        f"{config.seq_length}",
        "",
        *_parameters(config),
    ]
    if settings.train:
        lines += ["", *_training(settings, settings.train)]
    weights = sum(p.parameters for p in parts(config) if not is_adapter(p.name))
    columns, rows = _columns(config), config.batch_size
    lines += [
        "",
        "memory of one rank in predict",
        _line(f"weights ({config.param_init_type})", weights * BYTES[config.param_init_type]),
        _line(f"key/value cache ({rows} × {columns} tokens)", cache_memory(config, rows, columns)),
    ]
    return "\n".join(lines)


def _parameters(config: ModelConfig) -> List[str]:
    found = parts(config)
    rows = [("weight", "shape", "count", "parameters")]
    for part in found:
        shape = " × ".join(map(str, part.shape))
        rows.append((part.name, shape, str(part.count), f"{part.parameters:,}"))
    lines = _aligned(rows)
    base = [part.parameters for part in found if not is_adapter(part.name)]
    adapters = sum(part.parameters for part in found) - sum(base)
    layer = sum(prod(p.shape) for p in found if ".layers.N." in p.name and not is_adapter(p.name))
    rest = [f"{p.parameters:,}" for p in found if ".layers.N." not in p.name]
    lines.append("")
    lines.append(
        f"parameters: {' + '.join(rest)} + {config.num_layers} layers × {layer:,} = {sum(base):,}"
    )
    if adapters:
        lines.append(
            f"trained: {adapters:,} of LoRA's adapters, {100 * adapters / sum(base):.4f} % as many"
        )
    return lines


def _training(settings: Settings, dataset: Dataset) -> List[str]:
    own, batch = own_layout(settings), dataset.batch_size
    memory = training_memory(settings, own, batch)
    with_it, without = (
        activations(settings, own.model_parallel, batch, recompute=mode) for mode in (True, False)
    )
    kind = settings.model.param_init_type
    used, other = (with_it, without) if settings.recompute else (without, with_it)
    note = "with" if settings.recompute else "without"
    others = "without" if settings.recompute else "with"
    lines = [
        f"memory of one rank in training: {_words(own)}, batch {batch}",
        _line(f"weights ({kind})", memory.weights),
        _line("gradients", memory.gradients),
        _line("optimizer state (float32)", memory.optimizer),
        _line(f"activations {note} recompute, about", used),
        _line("together, about", memory.total),
        f"  ({others} recompute the activations would have about {_gib(other)})",
    ]
    limit = settings.device.max_memory
    if limit:
        lines.append(f"  context.max_device_memory is {limit}")
    rows = [("layouts", "weights", "gradients", "optimizer", "activations", "together")]
    for one in layouts(settings):
        found = training_memory(settings, one, batch)
        numbers = (
            found.weights, found.gradients, found.optimizer, found.activations, found.total
        )  # fmt: skip
        mark = " *" if one == own else ""
        rows.append((_words(one) + mark, *map(_gib, numbers)))
    ranks = one.data_parallel * one.model_parallel
    return [*lines, "", f"the same on {ranks} ranks in other layouts (* this one)", *_aligned(rows)]


def _columns(config: ModelConfig) -> int:
    return min(config.max_decode_length, config.seq_length)


def _with_total(memory: Memory) -> Dict[str, int]:
    return {**asdict(memory), "total": memory.total}


def _words(layout: Layout) -> str:
    shard = ", state divided" if layout.optimizer_shard else ""
    return f"dp {layout.data_parallel}, mp {layout.model_parallel}{shard}"


def _line(name: str, size: int) -> str:
    return f"  {name:<44}{_gib(size):>12}"


def _gib(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << power:
            return f"{size / (1 << power):.2f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _aligned(rows: Sequence[Tuple[str, ...]]) -> List[str]:
    """Columns: text on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
