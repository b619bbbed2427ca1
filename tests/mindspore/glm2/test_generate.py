"""Generation: the same tokens with a cache or without, alone or in a batch, and where it ends."""

from __future__ import annotations

import dataclasses
from typing import List, Tuple

import pytest

from glm2.config import ModelConfig
from glm2.errors import UsageError
from glm2.generate import Generator, padded_width
from glm2.model import Glm2
from glm2.sampling import Sampling
from tests.mindspore.glm2.reference import random_weights

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    kv_channels=8,
    num_attention_heads=4,
    multi_query_group_num=2,
    padded_vocab_size=61,
    seq_length=40,
    eos_token_id=1000,  # none: answers go on until they must end
)
PROMPTS: Tuple[List[int], ...] = ([5, 17, 3, 40, 8], [9, 2, 33], list(range(1, 21)), [59])
DRAWN = Sampling(do_sample=True, temperature=1.5, top_k=20, top_p=0.95, seed=7)


@pytest.fixture(scope="module")
def model() -> Glm2:
    made = Glm2(CONFIG)
    made.set_train(False)
    random_weights(made)
    return made


@pytest.fixture(scope="module")
def batch(model: Glm2) -> Generator:
    return Generator(model, batch=4, capacity=72)


@pytest.fixture(scope="module")
def single(model: Glm2) -> Generator:
    return Generator(model, batch=1, capacity=72)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), DRAWN, Sampling(repetition_penalty=1.7)],
    ids=["best", "drawn", "pen"],
)
def test_a_batch_gives_what_its_rows_give_alone(
    batch: Generator, single: Generator, sampling: Sampling
) -> None:
    together = batch.generate(PROMPTS, sampling)
    alone = [
        single.generate([prompt], sampling, draws=[row])[0] for row, prompt in enumerate(PROMPTS)
    ]
    assert together == alone
    assert len({tuple(row) for row in together}) == 4


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
def test_without_a_cache_the_tokens_are_the_same(
    model: Glm2, batch: Generator, sampling: Sampling
) -> None:
    whole = Generator(model, batch=4, capacity=72, use_past=False)
    assert whole.generate(PROMPTS, sampling) == batch.generate(PROMPTS, sampling)


def test_prompt_and_answer_fill_the_sequence_whatever_the_padding(single: Generator) -> None:
    (answer,) = single.generate(PROMPTS[:1])
    assert len(PROMPTS[0]) + len(answer) == CONFIG.seq_length


def test_limits_hold_for_each_row_by_itself(batch: Generator) -> None:
    whole = batch.generate(PROMPTS)
    found = batch.generate(PROMPTS, max_length=21)
    assert [len(p) + len(a) for p, a in zip(PROMPTS, found)] == [21] * 4
    assert found == [row[: len(cut)] for row, cut in zip(whole, found)]
    assert batch.generate(PROMPTS, max_new_tokens=2) == [row[:2] for row in whole]
    assert batch.generate(PROMPTS, max_length=20)[2] == [], "the prompt fills it"


def test_a_seed_gives_the_same_tokens_again_and_another_others(single: Generator) -> None:
    first = single.generate(PROMPTS[:1], DRAWN)
    assert single.generate(PROMPTS[:1], DRAWN) == first
    assert single.generate(PROMPTS[:1], dataclasses.replace(DRAWN, seed=8)) != first
    assert single.generate(PROMPTS[:1], DRAWN, draws=[3]) != first


def test_drawing_from_the_single_best_token_is_greedy(single: Generator) -> None:
    one = Sampling(do_sample=True, top_k=1)
    assert one.greedy
    assert not Sampling(repetition_penalty=1.1).greedy
    assert single.generate(PROMPTS[:1], one) == single.generate(PROMPTS[:1])


def test_tokens_already_used_become_less_likely(single: Generator) -> None:
    (free,) = single.generate(PROMPTS[2:3])
    (shy,) = single.generate(PROMPTS[2:3], Sampling(repetition_penalty=1e6))
    used = set(PROMPTS[2])
    assert not any(token in used or used.add(token) for token in shy)
    assert free != shy


def test_prompts_of_all_lengths_share_few_graphs() -> None:
    assert [padded_width(n) for n in (1, 16, 17, 33, 64, 65)] == [16, 16, 32, 64, 64, 128]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "give 1 to 1 prompts at a time, not 0"),
        (PROMPTS[:2], "give 1 to 1 prompts at a time, not 2"),
        ([[]], "a prompt has no tokens"),
        ([[1] * 40], "a prompt has 40 tokens; there is room for 39"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    single: Generator, prompts: List[List[int]], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        list(single.stream(prompts, Sampling(), 1))
