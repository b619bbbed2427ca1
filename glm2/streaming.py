"""The text of an answer while its tokens come in. Needs no MindSpore."""

from __future__ import annotations

from typing import Callable, Iterable, Iterator, List, Sequence

from glm2.tokenizer import Tokenizer

_BROKEN = "\ufffd"


def _print(text: str) -> None:
    print(text, end="", flush=True)


class TextStream:
    """Turns tokens into text piece by piece; the pieces together are the text of the whole.

    A character that is spelled in bytes comes when its last byte has come. ``before`` are the
    tokens in front of the answer, which decide whether it begins with a space.

    >>> stream = TextStream(tokenizer, prompt)       # doctest: +SKIP
    >>> for token in tokens:                         # doctest: +SKIP
    ...     print(stream.push(token), end="", flush=True)
    >>> print(stream.end())                          # doctest: +SKIP
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids: List[int] = list(before)
        self._shown = len(tokenizer.decode(self._ids))

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; often none."""
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids)
        # What stands for broken bytes at the end may become a character with the next ones.
        return self._show(text, len(text.rstrip(_BROKEN)))

    def end(self) -> str:
        """What is left when no more tokens come."""
        text: str = self._tokenizer.decode(self._ids)
        return self._show(text, len(text))

    def _show(self, text: str, certain: int) -> str:
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        return piece


def pieces(
    tokens: Iterable[int], tokenizer: Tokenizer, before: Sequence[int] = ()
) -> Iterator[str]:
    """The text of ``tokens`` in pieces as they come, none of them empty."""
    stream = TextStream(tokenizer, before)
    for token in tokens:
        piece = stream.push(token)
        if piece:
            yield piece
    rest = stream.end()
    if rest:
        yield rest


class TextStreamer:
    """Prints an answer as it grows: ``model.generate(ids, streamer=TextStreamer(tokenizer))``."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object] = _print) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._stream = TextStream(tokenizer)

    def put(self, token: int) -> None:
        """The next token of the answer."""
        self._write(self._stream.push(token))

    def end(self) -> None:
        """The answer is complete; the next token begins another."""
        self._write(self._stream.end() + "\n")
        self._stream = TextStream(self._tokenizer)
