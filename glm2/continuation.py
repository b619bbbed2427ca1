"""What every way to continue prompts has in common. Needs no MindSpore."""

from __future__ import annotations

from typing import Callable, Iterator, List, Optional, Protocol, Sequence

import numpy as np

from glm2.config import ModelConfig
from glm2.sampling import Sampling, choose, penalise


class Continues(Protocol):
    """A network that continues batches of prompts: in generation, or as exported graphs."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def batch(self) -> int:
        """The most prompts at a time."""

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


def generate(
    model: Continues,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: Optional[int] = None,
    *,
    max_length: Optional[int] = None,
    draws: Optional[Sequence[int]] = None,
    show: Optional[Callable[[int], None]] = None,
) -> List[List[int]]:
    """The tokens that follow each prompt, without the one that ends them.

    A row ends with ``eos_token_id``, after ``max_new_tokens``, or when prompt and answer have
    together ``max_length`` tokens (at most ``seq_length``). ``show`` is called with each token
    of the first answer as it comes.
    """
    limits = [limit(model.config, len(p), max_new_tokens, max_length) for p in prompts]
    answers: List[List[int]] = [[] for _ in prompts]
    ended = [most <= 0 for most in limits]
    if all(ended):
        return answers
    for tokens in model.stream(prompts, sampling, max(limits), draws):
        for row, token in enumerate(tokens):
            if not ended[row] and token != model.config.eos_token_id:
                answers[row].append(token)
                if show and row == 0:
                    show(token)
                ended[row] = len(answers[row]) == limits[row]
            else:
                ended[row] = True
        if all(ended):
            break
    return answers


def limit(
    config: ModelConfig,
    prompt: int,
    max_new_tokens: Optional[int] = None,
    max_length: Optional[int] = None,
) -> int:
    """The most tokens that an answer to a prompt of so many tokens may have."""
    whole = config.seq_length if max_length is None else max_length
    room = min(whole, config.seq_length) - prompt
    return room if max_new_tokens is None else min(room, max_new_tokens)


def sources(
    sampling: Sampling, prompts: int, draws: Optional[Sequence[int]]
) -> List[np.random.Generator]:
    """Where the rows draw from; see ``Continues.stream``."""
    return [np.random.default_rng([sampling.seed, number]) for number in (draws or range(prompts))]


def next_token(
    logits: np.ndarray, used: np.ndarray, sampling: Sampling, source: np.random.Generator
) -> int:
    """The next token of a row that has the tokens ``used``, from its logits [V]."""
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, used, sampling.repetition_penalty)
    return int(choose(logits[None], sampling, source)[0])
