"""Text generation: static shapes, so that a graph is compiled once; with or without a cache.

Rows are padded on the left, so that all of them continue in the same column.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm2.errors import UsageError
from glm2.layers import float_type
from glm2.model import Glm2
from glm2.sampling import GREEDY, Sampling, choose, penalise
from glm2.tokenizer import pad_left


class CachedForward(nn.Cell):
    """Logits of the next token after T more tokens, whose keys and values it keeps.

    The same code is prefill (T = all columns of the prompts) and decode (T = 1).
    """

    def __init__(self, model: Glm2, batch: int, capacity: int) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        self.transformer = model.transformer
        self.columns = Tensor(np.arange(capacity, dtype=np.int32))
        # Row of the cache where each page (one row's group) begins: [B·G, 1].
        pages = batch * config.groups
        self.pages = Tensor((np.arange(pages, dtype=np.int32) * capacity).reshape(-1, 1))
        shape, kind = (pages * capacity, config.kv_channels), float_type(config.compute_dtype)
        self.keys = ParameterTuple(
            [Parameter(ops.zeros(shape, kind), name=f"key_{i}") for i in range(config.num_layers)]
        )
        self.values = ParameterTuple(
            [Parameter(ops.zeros(shape, kind), name=f"value_{i}") for i in range(config.num_layers)]
        )

    def construct(self, ids: Tensor, start: Tensor, padding: Tensor) -> Tensor:
        """``ids`` [B, T] stand in the columns from ``start`` (scalar) on; logits [B, V]."""
        net = self.transformer
        slots = self.columns[: ids.shape[1]] + start  # [T]
        cos, sin, hidden = net.place(slots, padding, self.columns)
        rows = (self.pages + slots.reshape((1, -1))).reshape((-1,))  # [B·G·T]
        x = net.encoder.extend(net.embedding(ids), cos, sin, hidden, rows, self.keys, self.values)
        return net.output_layer(x[:, -1]).astype(ms.float32)


class WholeForward(nn.Cell):
    """Logits of the token after column ``last``, computed from all columns anew."""

    def __init__(self, model: Glm2, capacity: int) -> None:
        super().__init__(auto_prefix=False)
        self.transformer = model.transformer
        self.columns = Tensor(np.arange(capacity, dtype=np.int32))

    def construct(self, ids: Tensor, last: Tensor, padding: Tensor) -> Tensor:
        """``ids`` [B, S], filled up to column ``last``; logits [B, V]."""
        net = self.transformer
        cos, sin, hidden = net.place(self.columns, padding, self.columns)
        x = net.encoder(net.embedding(ids), cos, sin, hidden)
        return net.output_layer(ops.gather(x, last, 1)).astype(ms.float32)


class Generator:
    """Continues batches of prompts; its graphs are compiled at the first batch.

    At most ``batch`` prompts of at most ``width`` tokens at a time; prompt and answer have
    together at most ``capacity`` tokens.
    """

    def __init__(
        self, model: Glm2, *, batch: int, width: int, capacity: int, use_past: bool = True
    ) -> None:
        config = model.config
        if not 0 < width < capacity <= config.seq_length:
            raise UsageError(
                f"prompts of {width} tokens and answers up to {capacity} do not fit into "
                f"seq_length {config.seq_length}",
                hint="shorten the prompt, or set model.model_config.seq_length",
            )
        self.batch, self.width, self.capacity, self.config = batch, width, capacity, config
        self.cached = CachedForward(model, batch, capacity) if use_past else None
        self.whole = None if use_past else WholeForward(model, capacity)
        for cell in (self.cached, self.whole):
            if cell is not None:
                cell.set_train(False)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling = GREEDY,
        max_new_tokens: Optional[int] = None,
    ) -> List[List[int]]:
        """The tokens that follow each prompt, without the one that ends them."""
        answers: List[List[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for tokens in self.stream(prompts, sampling, max_new_tokens):
            for row, token in enumerate(tokens):
                ended[row] = ended[row] or token == self.config.eos_token_id
                if not ended[row]:
                    answers[row].append(token)
            if all(ended):
                break
        return answers

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: Optional[int] = None,
    ) -> Iterator[List[int]]:
        """One token for each prompt at a time, also behind the end of a row."""
        if not 0 < len(prompts) <= self.batch or max(map(len, prompts)) > self.width:
            raise UsageError(f"give 1 to {self.batch} prompts of at most {self.width} tokens")
        rows = pad_left(prompts, self.width, self.config.pad_token_id)
        rows += [rows[0]] * (self.batch - len(prompts))
        lengths = [len(p) for p in prompts] + [len(prompts[0])] * (self.batch - len(prompts))
        padding = Tensor(self.width - np.array(lengths, np.int32))
        filled = np.full((self.batch, self.capacity), self.config.pad_token_id, np.int32)
        filled[:, : self.width] = rows
        draw = np.random.default_rng(sampling.seed)
        count = self.capacity - self.width
        if max_new_tokens is not None:
            count = min(count, max_new_tokens)
        for column in range(self.width, self.width + count):
            logits = self._logits(filled, column, padding)[: len(prompts)]
            if sampling.repetition_penalty != 1.0:
                for row, prompt in enumerate(prompts):
                    used = np.concatenate((np.array(prompt), filled[row, self.width : column]))
                    logits[row] = penalise(logits[row], used, sampling.repetition_penalty)
            tokens = choose(logits, sampling, draw)
            filled[: len(prompts), column] = tokens
            yield [int(token) for token in tokens]

    def _logits(self, filled: np.ndarray, column: int, padding: Tensor) -> np.ndarray:
        """Logits [B, V] of ``column`` from all columns before it."""
        if self.whole is not None:
            last = Tensor(column - 1, ms.int32)
            return self.whole(Tensor(filled), last, padding).asnumpy()
        begin = 0 if column == self.width else column - 1
        ids = Tensor(np.ascontiguousarray(filled[:, begin:column]))
        return self.cached(ids, Tensor(begin, ms.int32), padding).asnumpy()
