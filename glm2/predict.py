"""Answers to prompts, as the guide's ``predict`` gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence

from glm2.errors import UsageError
from glm2.generate import Generator, padded_width
from glm2.model import Glm2
from glm2.sampling import Sampling
from glm2.streaming import pieces
from glm2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """The text of a prompt with its continuation, and how many tokens the latter has."""

    text: str
    tokens: int


def predict(
    model: Glm2,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    sampling: Sampling,
    show: Optional[Callable[[str], None]] = None,
) -> Iterator[Answer]:
    """Continue each text, ``batch_size`` of the model's configuration at a time.

    Prompt and continuation have at most ``max_decode_length`` tokens; UsageError for a prompt
    without room for one more. With ``show``, texts are continued one by one, and it is called
    with each piece of prompt and answer as it comes.
    """
    config = model.config
    prompts = [tokenizer.encode(text) for text in texts]
    length = min(config.max_decode_length, config.seq_length)
    longest = max(map(len, prompts))
    if longest >= length:
        raise UsageError(
            f"a prompt has {longest} tokens; prompt and answer have together at most {length}",
            hint="shorten it, or raise model.model_config.max_decode_length and seq_length",
        )
    generator = Generator(
        model,
        batch=1 if show else min(config.batch_size, len(prompts)),
        capacity=padded_width(longest) + length - min(map(len, prompts)),
        use_past=config.use_past,
    )
    if show:
        for number, prompt in enumerate(prompts):
            yield _shown(generator, tokenizer, prompt, sampling, number, show)
        return
    for first in range(0, len(prompts), generator.batch):
        group = prompts[first : first + generator.batch]
        numbers = range(first, first + len(group))
        found = generator.generate(group, sampling, max_length=length, draws=numbers)
        for prompt, tokens in zip(group, found):
            yield Answer(tokenizer.decode([*prompt, *tokens]), len(tokens))


def _shown(
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: List[int],
    sampling: Sampling,
    number: int,
    show: Callable[[str], None],
) -> Answer:
    tokens: List[int] = []

    def until_end() -> Iterator[int]:
        limit = generator.limit(len(prompt), max_length=generator.config.max_decode_length)
        for (token,) in generator.stream([prompt], sampling, limit, [number]):
            if token == generator.config.eos_token_id:
                return
            tokens.append(token)
            yield token

    show(tokenizer.decode(prompt))
    for piece in pieces(until_end(), tokenizer, prompt):
        show(piece)
    return Answer(tokenizer.decode([*prompt, *tokens]), len(tokens))
