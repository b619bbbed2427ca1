"""Token ids: ChatGLM2's conventions on the built-in tokenizer and on the real one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from glm2.config import IGNORED_LABEL
from glm2.data import encode_row, read_rows
from glm2.errors import ConfigError, UsageError
from glm2.settings import Dataset
from glm2.tokenizer import SPECIAL_TOKENS, Tokenizer, build_prompt, pad_left

REPOSITORY = Path(__file__).parents[3]
SHARED = Path(os.environ.get("GLM2_SHARED", REPOSITORY.parent / "shared"))


def test_special_tokens_follow_the_last_piece(sample_folder: Path, tokenizer: Tokenizer) -> None:
    model = str(sample_folder / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=model).vocab_size()
    assert SPECIAL_TOKENS == ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
    assert tokenizer.special_ids == {token: pieces + i for i, token in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.vocab_size == pieces + 5
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_a_sequence_begins_with_gmask_and_sop(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("黑色")
    assert ids[:2] == [tokenizer.special_ids["[gMASK]"], tokenizer.special_ids["sop"]]
    assert ids[2:] == tokenizer.encode("黑色", special=False)


@given(
    text=st.text(st.characters(exclude_categories=("Z", "C")), min_size=1).filter(
        lambda text: "\u2581" not in text  # sentencepiece's own sign for a space
    )
)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    """Whatever the text: what has no piece of its own is spelled in bytes."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_line_breaks_of_a_prompt_survive(tokenizer: Tokenizer) -> None:
    prompt = build_prompt("类型#裙*颜色#黑色")
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_ids_without_text_are_passed_over(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("黑色", special=False)
    outside = [-1, tokenizer.special_ids["eop"], tokenizer.vocab_size, 10**6]
    assert tokenizer.decode([*outside, *ids, *outside]) == "黑色"


def test_the_form_of_a_prompt() -> None:
    assert build_prompt("你好") == "[Round 1]\n\n问：你好\n\n答："


def test_rounds_are_joined_by_blank_lines() -> None:
    assert build_prompt("再见", [("你好", "您好")]) == (
        "[Round 1]\n\n问：你好\n\n答：您好\n\n[Round 2]\n\n问：再见\n\n答："
    )


def test_padding_stands_on_the_left() -> None:
    assert pad_left([[5], [6, 7, 8]], 3, 0) == [[0, 0, 5], [6, 7, 8]]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer file .*absent\.model"):
        Tokenizer(tmp_path / "absent.model")


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"no model")
    with pytest.raises(ConfigError, match="not a sentencepiece model"):
        Tokenizer(file)


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    """ChatGLM2's own tokenizer."""
    file = SHARED / "data" / "tokenizer.model"
    if not file.is_file():
        pytest.skip("ChatGLM2's tokenizer.model is not at hand (GLM2_SHARED)")
    return Tokenizer(file)


def test_ids_of_chatglm2_are_those_of_the_reference(real: Tokenizer) -> None:
    assert real.encode("你好") == [64790, 64792, 36474, 54591]
    assert real.special_ids == {
        "[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791, "sop": 64792, "eop": 64793
    }  # fmt: skip
    assert (real.pad_id, real.bos_id, real.eos_id) == (0, 1, 2)


def test_a_prompt_of_chatglm2_survives(real: Tokenizer) -> None:
    prompt = build_prompt("类型#裤*版型#宽松", [("你好", "Hello, world")])
    assert real.decode(real.encode(prompt)) == prompt


def test_every_row_of_advertisegens_eval_set_is_learned_whole_or_cut_where_it_is_too_long(
    real: Tokenizer,
) -> None:
    file = SHARED / "data" / "AdvertiseGen_dev.json"
    if not file.is_file():
        pytest.skip("AdvertiseGen's eval set is not at hand (GLM2_SHARED)")
    found = read_rows(file)
    assert (len(found.rows), found.bad) == (1070, ())
    dataset = Dataset("", "", max_source_length=64, max_target_length=128)
    for row in found.rows:
        ids, labels = encode_row(row, real, dataset)
        learned = [label for label in labels if label != IGNORED_LABEL]
        assert len(ids) == len(labels) == 193
        assert learned[-1] == real.eos_id
        answer = real.encode(row.summary, special=False)
        assert learned[:-1] == answer[:128]
        assert real.decode(answer) == row.summary


class TestCall:
    """The tokenizer as a function, as in the guide."""

    def test_one_text(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("黑色")
        assert tokenizer("黑色") == {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "position_ids": list(range(len(ids))),
        }

    def test_a_batch_is_padded_on_the_left(self, tokenizer: Tokenizer) -> None:
        short, long = tokenizer.encode("黑"), tokenizer.encode("黑色的裙子很大气")
        blank = len(long) - len(short)
        found = tokenizer(["黑", "黑色的裙子很大气"], padding=True)
        assert found["input_ids"] == [[0] * blank + short, long]
        assert found["attention_mask"] == [[0] * blank + [1] * len(short), [1] * len(long)]
        assert found["position_ids"][0] == [0] * blank + list(range(len(short)))

    def test_without_padding_rows_keep_their_lengths(self, tokenizer: Tokenizer) -> None:
        found = tokenizer(["黑", "黑色的裙子"])
        assert found["input_ids"] == [tokenizer.encode("黑"), tokenizer.encode("黑色的裙子")]

    def test_rows_are_cut_and_filled_to_a_length(self, tokenizer: Tokenizer) -> None:
        found = tokenizer("黑色的裙子", truncation=True, max_length=3)
        assert found["input_ids"] == tokenizer.encode("黑色的裙子")[:3]
        filled = tokenizer("黑", padding="max_length", max_length=9)
        assert filled["input_ids"] == pad_left([tokenizer.encode("黑")], 9, 0)[0]
        assert len(filled["position_ids"]) == 9

    def test_what_does_not_fit_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(UsageError, match="need max_length"):
            tokenizer("黑", truncation=True)
        with pytest.raises(UsageError, match="max_length is 3"):
            tokenizer("黑色的裙子", padding="max_length", max_length=3)


def test_rows_are_decoded_to_a_list_of_texts(tokenizer: Tokenizer) -> None:
    texts = ["黑色", "裙子👋"]
    rows = tokenizer(texts, padding=True)["input_ids"]
    assert tokenizer.decode(rows) == texts
    assert tokenizer.decode(np.array(tokenizer.encode("黑色"))) == "黑色"
    assert tokenizer.decode([]) == ""


def test_bytes_without_a_character_are_marked(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("👋", special=False)[:-1]).endswith("\ufffd")


def test_the_prompt_of_a_tokenizer_is_the_prompt(tokenizer: Tokenizer) -> None:
    assert tokenizer.build_prompt("再见", [("你好", "您好")]) == build_prompt(
        "再见", [("你好", "您好")]
    )
