"""Pieces of a growing answer: together the whole text, and no character in halves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glm2.streaming import TextStream, pieces
from glm2.tokenizer import Tokenizer, build_prompt

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(text=TEXT, before=st.sampled_from(["", "答：", "a b"]))
def test_the_pieces_are_the_whole_text(tokenizer: Tokenizer, text: str, before: str) -> None:
    prompt, answer = tokenizer.encode(before), tokenizer.encode(text, special=False)
    whole = tokenizer.decode([*prompt, *answer])
    shown = "".join(pieces(answer, tokenizer, prompt))
    assert tokenizer.decode(prompt) + shown == whole


@given(ids=st.lists(st.integers(0, 1100), max_size=40))
def test_whatever_the_tokens_nothing_is_lost(tokenizer: Tokenizer, ids: list) -> None:
    assert "".join(pieces(ids, tokenizer)) == tokenizer.decode(ids)


def test_a_character_of_several_bytes_comes_whole(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(build_prompt("黑色"))
    answer = tokenizer.encode("👋，龘", special=False)
    stream = TextStream(tokenizer, prompt)
    found = [stream.push(token) for token in answer]
    assert "".join(found).strip() == "👋，龘"
    assert [piece.strip() for piece in found if piece.strip()] == ["👋", "，", "龘"]
    assert stream.end() == ""


def test_bytes_that_stay_broken_come_at_the_end(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("👋", special=False)[:-1]
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token) for token in half).strip() == ""
    assert stream.end().endswith("\ufffd")
    assert stream.end() == ""
