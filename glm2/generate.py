"""Text generation: batches of prompts are continued, with a cache or without."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Iterator, List, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from glm2.continuation import generate, next_token, sources
from glm2.decoding import CachedForward, WholeForward
from glm2.errors import UsageError
from glm2.model import Glm2
from glm2.sampling import GREEDY, Sampling
from glm2.streaming import TextStreamer
from glm2.tokenizer import pad_left

NARROWEST = 16
"""Prompts are padded to this many tokens, or to the next power of two: few graphs for all."""

PROMPT, STEP = "prompt", "increment"
"""Phases of the graphs with a cache. MindSpore knows the second and runs what it has compiled for
it without going through all the network's cells again, which takes a millisecond."""


class Generator:
    """Continues batches of prompts; its graphs are compiled when they are first needed.

    At most ``batch`` prompts at a time. They are padded to ``width`` tokens, or, without it, to
    the next power of two, so that prompts of all lengths need few graphs. ``capacity`` is the
    number of columns for padding, prompt and answer together; the padding takes no positions,
    so that prompt and answer of a row may have ``seq_length`` tokens. The graph of the single
    steps is compiled once.
    """

    def __init__(
        self,
        model: Glm2,
        *,
        batch: int,
        capacity: int,
        width: Optional[int] = None,
        use_past: bool = True,
    ) -> None:
        self.batch, self.width, self.capacity = batch, width, capacity
        self.config = model.config
        if capacity < 2 or (width is not None and not 0 < width < capacity):
            raise UsageError(
                f"prompts of {width or 1} tokens and answers do not fit into {capacity} columns"
            )
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
        *,
        max_length: Optional[int] = None,
        draws: Optional[Sequence[int]] = None,
        show: Optional[Callable[[int], None]] = None,
    ) -> List[List[int]]:
        """The tokens that follow each prompt; see ``continuation.generate``."""
        return generate(
            self, prompts, sampling, max_new_tokens, max_length=max_length, draws=draws, show=show
        )

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: Optional[int] = None,
        draws: Optional[Sequence[int]] = None,
    ) -> Iterator[List[int]]:
        """One token for each prompt at a time; see ``Continues``."""
        width = self._width(prompts)
        missing = self.batch - len(prompts)
        ids = pad_left(prompts, width, self.config.pad_token_id)
        filled = np.full((self.batch, self.capacity), self.config.pad_token_id, np.int32)
        filled[:, :width] = ids + [ids[0]] * missing
        lengths = [len(prompt) for prompt in prompts]
        padding = width - np.array(lengths + lengths[:1] * missing, np.int32)
        draw = sources(sampling, len(prompts), draws)
        step = self._cached_steps if self.cached else self._whole_steps
        steps = step(filled, width, padding, sampling.greedy)
        columns = min(self.capacity - width, self.config.seq_length - min(lengths))
        if max_new_tokens is not None:
            columns = min(columns, max_new_tokens)
        for column in range(width, width + columns):
            found = next(steps)[: len(prompts)]
            if not sampling.greedy:
                for row, logits in enumerate(found):
                    used = filled[row, padding[row] : column]
                    filled[row, column] = next_token(logits, used, sampling, draw[row])
            else:
                filled[: len(prompts), column] = found
            yield filled[: len(prompts), column].tolist()

    def _width(self, prompts: Sequence[Sequence[int]]) -> int:
        """Columns of the padded prompts; UsageError for prompts that cannot be continued."""
        if not 0 < len(prompts) <= self.batch:
            raise UsageError(f"give 1 to {self.batch} prompts at a time, not {len(prompts)}")
        if not all(prompts):
            raise UsageError("a prompt has no tokens", hint="encode begins each with [gMASK] sop")
        longest = max(map(len, prompts))
        widest = self.width or min(self.capacity, self.config.seq_length) - 1
        if longest > widest:
            raise UsageError(
                f"a prompt has {longest} tokens; there is room for {widest} and an answer",
                hint="shorten the prompt, or set model.model_config.seq_length",
            )
        return self.width or min(padded_width(longest), self.capacity - 1)

    def _cached_steps(
        self, filled: np.ndarray, width: int, padding: np.ndarray, greedy: bool
    ) -> Iterator[np.ndarray]:
        """Best tokens [B] or logits [B, V] of each column; ``filled`` has the tokens before it."""
        assert self.cached is not None
        rows = Tensor(padding)
        ids, column = Tensor(np.ascontiguousarray(filled[:, :width])), Tensor(0, ms.int32)
        self.cached.phase = PROMPT
        for last in range(width, self.capacity):
            best, logits, column = self.cached(ids, column, rows)
            self.cached.phase = STEP
            if greedy:
                # The tokens are not read back from the host: a step ends in the next one.
                ids = best
                yield best.asnumpy()[:, 0]
            else:
                yield logits.asnumpy()
                ids = Tensor(np.ascontiguousarray(filled[:, last : last + 1]))

    def _whole_steps(
        self, filled: np.ndarray, width: int, padding: np.ndarray, greedy: bool
    ) -> Iterator[np.ndarray]:
        """The same without a cache."""
        assert self.whole is not None
        rows = Tensor(padding)
        for last in range(width - 1, self.capacity - 1):
            best, logits = self.whole(Tensor(filled), Tensor(last, ms.int32), rows)
            yield best.asnumpy()[:, 0] if greedy else logits.asnumpy()


def continue_prompts(
    model: Glm2,
    input_ids: Any,
    *,
    max_length: Optional[int] = None,
    max_new_tokens: Optional[int] = None,
    do_sample: Optional[bool] = None,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    temperature: Optional[float] = None,
    repetition_penalty: Optional[float] = None,
    seed: Optional[int] = None,
    streamer: Optional[TextStreamer] = None,
) -> List[List[int]]:
    """Each prompt with the tokens that follow it, without the one that ends them.

    ``input_ids`` are the token ids of one prompt or of several, as lists, an array or a tensor;
    padding on the left is passed over. Answers end with ``eos_token_id``, after
    ``max_new_tokens``, or when prompt and answer have together ``max_length`` tokens; without
    both, ``max_decode_length`` of the configuration. What is not given is as the configuration
    says; without ``seed`` each call draws anew. ``streamer`` shows the answer to a single prompt
    as it grows. The first call compiles. Raises UsageError for a prompt without room, and
    for a token that the model does not have.
    """
    config = model.config
    prompts = _rows(input_ids, config.pad_token_id)
    unknown = [t for prompt in prompts for t in prompt if not 0 <= t < config.padded_vocab_size]
    if unknown:
        raise UsageError(
            f"{unknown[0]} is no token: the model has 0 to {config.padded_vocab_size - 1}",
            hint="encode the prompt with the tokenizer that belongs to the model",
        )
    given = {
        "do_sample": do_sample,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "repetition_penalty": repetition_penalty,
    }
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    changes = {key: value for key, value in given.items() if value is not None}
    sampling = dataclasses.replace(Sampling.of(config, seed), **changes)
    if max_length is None and max_new_tokens is None:
        max_length = config.max_decode_length
    whole = config.seq_length if max_length is None else max_length
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; at least 1")
    if whole > config.seq_length:
        raise UsageError(
            f"max_length is {whole}, the model's seq_length {config.seq_length}",
            hint="lower max_length, or build the model with a larger seq_length",
        )
    longest = max(map(len, prompts), default=0)
    if longest >= whole:
        raise UsageError(
            f"a prompt has {longest} tokens; prompt and answer have together at most {whole}",
            hint="shorten the prompt, or raise max_length (and seq_length)",
        )
    if streamer and len(prompts) != 1:
        raise UsageError(f"a streamer shows one answer, not {len(prompts)} at once")
    new = whole - min(map(len, prompts), default=0)
    if max_new_tokens is not None:
        new = min(new, max_new_tokens)
    generator = _generator(model, len(prompts), padded_width(longest) + new)
    found = generator.generate(
        prompts, sampling, max_new_tokens, max_length=whole, show=streamer and streamer.put
    )
    if streamer:
        streamer.end()
    return [[*prompt, *answer] for prompt, answer in zip(prompts, found)]


def _generator(model: Glm2, batch: int, columns: int) -> Generator:
    """The generator of the last call with so many prompts if it has room, else a larger one."""
    kept: Optional[Generator] = model.generators.get(batch)
    if kept is None or kept.capacity < columns:
        # In steps of 64, so that prompts of about the same length share a graph.
        capacity = -(-columns // 64) * 64
        kept = Generator(model, batch=batch, capacity=capacity, use_past=model.config.use_past)
        model.generators[batch] = kept
    return kept


def _rows(input_ids: Any, pad_id: int) -> List[List[int]]:
    """Lists of token ids without padding on the left, from whatever holds them."""
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.asnumpy()
    rows = [row.asnumpy() if isinstance(row, Tensor) else row for row in input_ids]
    if rows and np.ndim(rows[0]) == 0:
        rows = [rows]
    found: List[List[int]] = []
    for row in rows:
        ids = [int(token) for token in row]
        first = next((i for i, token in enumerate(ids) if token != pad_id), len(ids))
        found.append(ids[first:])
    return found


def padded_width(longest: int) -> int:
    """Tokens that a prompt is padded to: the next power of two, at least NARROWEST.

    >>> padded_width(3), padded_width(64), padded_width(65)
    (16, 64, 128)
    """
    return max(NARROWEST, 1 << (longest - 1).bit_length())
