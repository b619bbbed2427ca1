"""Answers to prompts, as the guide's ``predict`` gives them. Needs no MindSpore by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Sequence

from glm2 import sample
from glm2.config import ModelConfig
from glm2.continuation import Continues, generate, limit
from glm2.download import DOWNLOADS, VOCABULARY
from glm2.errors import UsageError
from glm2.sampling import Sampling
from glm2.settings import Settings
from glm2.streaming import pieces
from glm2.tokenizer import Tokenizer

if TYPE_CHECKING:  # `infer` has no network: its graphs may run where there is no MindSpore.
    from glm2.model import Glm2

Show = Callable[[str], None]


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
    show: Optional[Show] = None,
) -> Iterator[Answer]:
    """Continue each text with the network; see ``answers``."""
    from glm2.generate import Generator, padded_width

    config = model.config
    lengths = [len(prompt) for prompt in encoded(tokenizer, texts, config)]
    generator = Generator(
        model,
        batch=1 if show else min(config.batch_size, len(lengths)),
        capacity=padded_width(max(lengths)) + whole_length(config) - min(lengths),
        use_past=config.use_past,
    )
    return answers(generator, tokenizer, texts, sampling, show)


def tokenizer_file(settings: Optional[Settings], given: str = "") -> Path:
    """The tokenizer that is given, else that of the configuration, else that of the downloads."""
    if given:
        return sample.resolve(given)
    dataset = settings and (settings.eval or settings.train)
    if dataset:
        return sample.resolve(dataset.tokenizer)
    downloaded = DOWNLOADS / VOCABULARY
    if downloaded.is_file():
        return downloaded
    raise UsageError(
        "which tokenizer? The configuration names none",
        hint=f"give infer --tokenizer, a configuration with eval_dataset.tokenizer.vocab_file, or "
        f"put {VOCABULARY} into ./{DOWNLOADS}",
    )


def answers(
    model: Continues,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    sampling: Sampling,
    show: Optional[Show] = None,
) -> Iterator[Answer]:
    """Continue each text, ``model.batch`` at a time.

    Prompt and continuation have at most ``max_decode_length`` tokens; UsageError for a prompt
    without room for one more. With ``show``, texts are continued one by one, and it is called
    with each piece of prompt and answer as it comes.
    """
    prompts = encoded(tokenizer, texts, model.config)
    if show:
        for number, prompt in enumerate(prompts):
            yield _shown(model, tokenizer, prompt, sampling, number, show)
        return
    length = whole_length(model.config)
    for first in range(0, len(prompts), model.batch):
        group = prompts[first : first + model.batch]
        numbers = range(first, first + len(group))
        found = generate(model, group, sampling, max_length=length, draws=numbers)
        for prompt, tokens in zip(group, found):
            yield Answer(tokenizer.decode([*prompt, *tokens]), len(tokens))


def encoded(tokenizer: Tokenizer, texts: Sequence[str], config: ModelConfig) -> List[List[int]]:
    """The texts' tokens; UsageError for a text without room for an answer."""
    prompts = [tokenizer.encode(text) for text in texts]
    length, longest = whole_length(config), max(map(len, prompts))
    if longest >= length:
        raise UsageError(
            f"a prompt has {longest} tokens; prompt and answer have together at most {length}",
            hint="shorten it, or raise model.model_config.max_decode_length and seq_length",
        )
    return prompts


def whole_length(config: ModelConfig) -> int:
    """The most tokens that prompt and answer have together."""
    return min(config.max_decode_length, config.seq_length)


def _shown(
    model: Continues,
    tokenizer: Tokenizer,
    prompt: List[int],
    sampling: Sampling,
    number: int,
    show: Show,
) -> Answer:
    tokens: List[int] = []
    most = limit(model.config, len(prompt), max_length=whole_length(model.config))

    def until_end() -> Iterator[int]:
        for (token,) in model.stream([prompt], sampling, most, [number]):
            if token == model.config.eos_token_id:
                return
            tokens.append(token)
            yield token

    show(tokenizer.decode(prompt))
    for piece in pieces(until_end(), tokenizer, prompt):
        show(piece)
    return Answer(tokenizer.decode([*prompt, *tokens]), len(tokens))
