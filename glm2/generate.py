"""Text generation: batches of prompts are continued, with a cache or without."""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from glm2.decoding import CachedForward, WholeForward
from glm2.errors import UsageError
from glm2.model import Glm2
from glm2.sampling import GREEDY, Sampling, choose, penalise
from glm2.tokenizer import pad_left

NARROWEST = 16
"""Prompts are padded to this many tokens, or to the next power of two: few graphs for all."""


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
    ) -> List[List[int]]:
        """The tokens that follow each prompt, without the one that ends them.

        A row ends with ``eos_token_id``, after ``max_new_tokens``, or when prompt and answer
        have together ``max_length`` tokens (at most ``seq_length``). See ``stream`` for
        ``draws``.
        """
        limits = [self.limit(len(prompt), max_new_tokens, max_length) for prompt in prompts]
        answers: List[List[int]] = [[] for _ in prompts]
        ended = [limit <= 0 for limit in limits]
        if all(ended):
            return answers
        for tokens in self.stream(prompts, sampling, max(limits), draws):
            for row, token in enumerate(tokens):
                if not ended[row] and token != self.config.eos_token_id:
                    answers[row].append(token)
                    ended[row] = len(answers[row]) == limits[row]
                else:
                    ended[row] = True
            if all(ended):
                break
        return answers

    def limit(
        self, prompt: int, max_new_tokens: Optional[int] = None, max_length: Optional[int] = None
    ) -> int:
        """The most tokens that an answer to a prompt of so many tokens may have."""
        whole = self.config.seq_length if max_length is None else max_length
        room = min(whole, self.config.seq_length) - prompt
        return room if max_new_tokens is None else min(room, max_new_tokens)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: Optional[int] = None,
        draws: Optional[Sequence[int]] = None,
    ) -> Iterator[List[int]]:
        """One token for each prompt at a time, also behind the end of a row.

        Each row draws from a source of its own, seeded with ``sampling.seed`` and the row's
        number in ``draws`` (default: its place), so that the other rows of the batch change
        nothing.
        """
        width = self._width(prompts)
        missing = self.batch - len(prompts)
        ids = pad_left(prompts, width, self.config.pad_token_id)
        filled = np.full((self.batch, self.capacity), self.config.pad_token_id, np.int32)
        filled[:, :width] = ids + [ids[0]] * missing
        lengths = [len(prompt) for prompt in prompts]
        padding = width - np.array(lengths + lengths[:1] * missing, np.int32)
        sources = [
            np.random.default_rng([sampling.seed, number])
            for number in (draws or range(len(prompts)))
        ]
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
                    filled[row, column] = _drawn(logits, used, sampling, sources[row])
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
        for last in range(width, self.capacity):
            best, logits, column = self.cached(ids, column, rows)
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


def padded_width(longest: int) -> int:
    """Tokens that a prompt is padded to: the next power of two, at least NARROWEST.

    >>> padded_width(3), padded_width(64), padded_width(65)
    (16, 64, 128)
    """
    return max(NARROWEST, 1 << (longest - 1).bit_length())


def _drawn(
    logits: np.ndarray, used: np.ndarray, sampling: Sampling, source: np.random.Generator
) -> int:
    """The next token of a row that has the tokens ``used``."""
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, used, sampling.repetition_penalty)
    return int(choose(logits[None], sampling, source)[0])
