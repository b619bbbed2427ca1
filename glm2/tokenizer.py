"""ChatGLM2's tokenizer: a sentencepiece model and five special tokens behind its pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import sentencepiece

from glm2.config import ModelConfig
from glm2.errors import ConfigError, UsageError

SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""In the order of their ids, which follow the last piece: 64789 … 64793 in ChatGLM2."""


class Tokenizer:
    """Text to token ids and back.

    >>> tokenizer = Tokenizer("tokenizer.model")           # doctest: +SKIP
    >>> tokenizer.encode("你好")                            # doctest: +SKIP
    [64790, 64792, 36474, 54591]
    """

    def __init__(self, file: str | Path) -> None:
        if not Path(file).is_file():
            raise ConfigError(
                f"there is no tokenizer file {file}",
                hint="name ChatGLM2's tokenizer.model; in a configuration it is the vocab_file of "
                "train_dataset.tokenizer and of eval_dataset.tokenizer",
            )
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"{file} is not a sentencepiece model") from error
        first = self._pieces.vocab_size()
        self.special_ids = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = first + len(SPECIAL_TOKENS)
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        self.pad_id: int = self._pieces.unk_id()
        """ChatGLM2 pads with the id of the unknown piece, 0."""

    def encode(self, text: str, *, special: bool = True) -> List[int]:
        """Token ids of ``text``, with ``[gMASK] sop`` before it unless ``special`` is False."""
        ids: List[int] = self._pieces.encode(text)
        return self.prefix() + ids if special else ids

    def prefix(self) -> List[int]:
        """What begins every sequence: ``[gMASK] sop``."""
        return [self.special_ids["[gMASK]"], self.special_ids["sop"]]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: Optional[int] = None,
    ) -> Dict[str, Any]:
        """Token ids of a text, or of several: what ``model.generate`` takes.

        Gives ``input_ids``, ``attention_mask`` (0 for padding) and ``position_ids``, each a list,
        or a list a text. ``padding`` True fills all rows up to the longest and "max_length" up to
        ``max_length``, on the left; ``truncation`` cuts them to ``max_length``. Raises UsageError
        when ``max_length`` is missing or too short for a row.
        """
        rows = [self.encode(item) for item in ([text] if isinstance(text, str) else text)]
        if max_length is None and (truncation or padding == "max_length"):
            raise UsageError("truncation and padding to max_length need max_length")
        if truncation:
            rows = [row[:max_length] for row in rows]
        width = 0
        if padding:
            width = max(map(len, rows), default=0)
        if padding == "max_length" and max_length is not None:
            if width > max_length:
                raise UsageError(
                    f"a text has {width} tokens, max_length is {max_length}",
                    hint="give truncation=True to cut it",
                )
            width = max_length
        blank = [max(width - len(row), 0) for row in rows]
        encoded = {
            "input_ids": pad_left(rows, width, self.pad_id),
            "attention_mask": [[0] * n + [1] * len(row) for n, row in zip(blank, rows)],
            "position_ids": [[0] * n + list(range(len(row))) for n, row in zip(blank, rows)],
        }
        if isinstance(text, str):
            return {key: value[0] for key, value in encoded.items()}
        return encoded

    def decode(self, ids: Iterable[Any]) -> Any:
        """Text of token ids, or the list of texts of several rows of them.

        Special tokens, padding and ids beyond the vocabulary have no text. Characters without a
        piece of their own are spelled in bytes; bytes that make no character become U+FFFD.
        """
        items = list(ids)
        if items and not isinstance(items[0], (int, np.integer)):
            return [self.decode(row) for row in items]
        pieces = range(self._pieces.vocab_size())
        shown = [int(i) for i in items if int(i) in pieces and int(i) != self.pad_id]
        text: str = self._pieces.decode(shown)
        return text

    def build_prompt(self, question: str, history: Sequence[Tuple[str, str]] = ()) -> str:
        """The prompt of a question after rounds of (question, answer); see ``build_prompt``."""
        return build_prompt(question, history)


def tokenizer_for(config: ModelConfig, file: str | Path) -> Tokenizer:
    """The tokenizer of ``file``; ConfigError when it has more tokens than the network."""
    tokenizer = Tokenizer(file)
    if tokenizer.vocab_size > config.padded_vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, padded_vocab_size is "
            f"{config.padded_vocab_size}",
            hint="use the tokenizer that belongs to the model",
        )
    return tokenizer


def build_prompt(question: str, history: Sequence[Tuple[str, str]] = ()) -> str:
    """The prompt of a question after rounds of (question, answer).

    >>> build_prompt("你好")
    '[Round 1]\\n\\n问：你好\\n\\n答：'
    """
    rounds = [
        f"[Round {i}]\n\n问：{asked}\n\n答：{answered}"
        for i, (asked, answered) in enumerate(history, 1)
    ]
    rounds.append(f"[Round {len(history) + 1}]\n\n问：{question}\n\n答：")
    return "\n\n".join(rounds)


def pad_left(rows: Sequence[Sequence[int]], width: int, pad_id: int) -> List[List[int]]:
    """Rows filled up to ``width`` with padding on the left, as generation needs them."""
    return [[pad_id] * (width - len(row)) + list(row) for row in rows]
