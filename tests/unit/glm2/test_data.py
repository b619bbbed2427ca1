"""AdvertiseGen rows -> token ids and labels -> the batches of each rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2.config import IGNORED_LABEL
from glm2.data import BadLine, Batches, Row, encode_prompt, encode_row, read_rows
from glm2.errors import ConfigError
from glm2.settings import Dataset
from glm2.tokenizer import Tokenizer, build_prompt

ROW = Row("类型#裙*材质#棉*颜色#黑色", "这款裙子，精选纯棉面料柔软亲肤，经典的黑色沉稳大气。")


def dataset(**values: object) -> Dataset:
    return Dataset(file="train.json", tokenizer="tokenizer.model", **values)


class TestReadRows:
    GOOD = json.dumps({"content": "类型#裙", "summary": "裙子"}, ensure_ascii=False)

    def read(self, folder: Path, *lines: str | bytes) -> tuple:
        file = folder / "train.json"
        texts = [line if isinstance(line, bytes) else line.encode() for line in lines]
        file.write_bytes(b"\n".join(texts) + b"\n")
        found = read_rows(file)
        return found.rows, found.bad

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{", "Expecting property name"),
            ("[1, 2]", "not a JSON object"),
            ('{"content": "a"}', "summary is missing or not text"),
            ('{"content": 1, "summary": "b"}', "content is missing or not text"),
            (b'{"content": "\xff", "summary": "b"}', "can't decode"),
        ],
    )
    def test_a_line_that_is_no_row_is_named_with_its_number(
        self, tmp_path: Path, line: str | bytes, reason: str
    ) -> None:
        rows, bad = self.read(tmp_path, self.GOOD, "", line, self.GOOD)
        assert rows == (Row("类型#裙", "裙子"),) * 2
        assert [item.line for item in bad] == [3], "blank lines count"
        assert reason in bad[0].reason

    def test_all_bad_lines_are_counted(self, tmp_path: Path) -> None:
        _, bad = self.read(tmp_path, "[]", self.GOOD, "[]", "[]")
        assert bad == tuple(BadLine(line, "not a JSON object") for line in (1, 3, 4))

    def test_line_ends_of_windows_are_no_problem(self, tmp_path: Path) -> None:
        rows, bad = self.read(tmp_path, self.GOOD + "\r", "\r", self.GOOD + "\r")
        assert (len(rows), bad) == (2, ())

    def test_a_file_without_rows_says_what_its_first_bad_line_is(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has no rows; line 2: not a JSON object"):
            self.read(tmp_path, "", "[]")

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has no rows$"):
            self.read(tmp_path, "")

    def test_a_missing_file_is_refused_with_the_options_that_name_it(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot read the dataset") as caught:
            read_rows(tmp_path / "absent.json")
        assert "--train_dataset_dir" in caught.value.hint


class TestEncodeRow:
    def test_prompt_target_end_and_padding_in_this_order(self, tokenizer: Tokenizer) -> None:
        ids, labels = encode_row(
            ROW, tokenizer, dataset(max_source_length=60, max_target_length=50)
        )
        prompt = tokenizer.encode(build_prompt(ROW.content))
        target = [*tokenizer.encode(ROW.summary, special=False), tokenizer.eos_id]
        rest = 60 + 50 + 1 - len(prompt) - len(target)
        assert rest > 0
        assert ids == prompt + target + [tokenizer.pad_id] * rest
        assert labels == [IGNORED_LABEL] * len(prompt) + target + [IGNORED_LABEL] * rest

    def test_both_parts_are_cut_and_the_end_is_kept(self, tokenizer: Tokenizer) -> None:
        ids, labels = encode_row(ROW, tokenizer, dataset(max_source_length=7, max_target_length=4))
        prompt = tokenizer.encode(build_prompt(ROW.content))[:7]
        target = tokenizer.encode(ROW.summary, special=False)[:4]
        assert ids == [*prompt, *target, tokenizer.eos_id]
        assert labels == [IGNORED_LABEL] * 7 + [*target, tokenizer.eos_id]

    def test_padding_is_learned_when_it_is_not_ignored(self, tokenizer: Tokenizer) -> None:
        lengths = {"max_source_length": 60, "max_target_length": 50}
        _, ignored = encode_row(ROW, tokenizer, dataset(**lengths))
        _, learned = encode_row(ROW, tokenizer, dataset(**lengths, learn_padding=True))
        end = ignored.index(tokenizer.eos_id) + 1
        assert learned[:end] == ignored[:end]
        assert set(learned[end:]) == {tokenizer.pad_id}

    @given(
        source=st.integers(1, 80),
        target=st.integers(1, 60),
        content=st.text(max_size=30),
        summary=st.text(max_size=30),
    )
    def test_every_row_has_one_length_and_learns_what_it_shows(
        self, tokenizer: Tokenizer, source: int, target: int, content: str, summary: str
    ) -> None:
        ids, labels = encode_row(
            Row(content, summary),
            tokenizer,
            dataset(max_source_length=source, max_target_length=target),
        )
        assert len(ids) == len(labels) == source + target + 1
        learned = [i for i, label in enumerate(labels) if label != IGNORED_LABEL]
        prompt = encode_prompt(content, tokenizer, source)
        assert learned[0] == len(prompt), "the first token of the target is learned"
        assert learned == list(range(learned[0], learned[-1] + 1))
        assert [ids[i] for i in learned] == [labels[i] for i in learned]
        assert labels[learned[-1]] == tokenizer.eos_id


class OneTokenEach:
    """A tokenizer whose prompts are one token, and whose targets are the row's number + 10."""

    pad_id, eos_id = 0, 2

    def encode(self, text: str, *, special: bool = True) -> List[int]:
        return [1] if special else [int(text) + 10]


def batches(rows: int, ranks: int = 1, rank: int = 0, **values: object) -> Batches:
    return Batches(
        [Row("", str(i)) for i in range(rows)],
        OneTokenEach(),
        dataset(max_source_length=1, max_target_length=1, **values),
        ranks=ranks,
        rank=rank,
    )


def seen(steps: Batches, epoch: int = 0, first_step: int = 0) -> List[List[int]]:
    """The rows' numbers of each step, padding left out."""
    return [
        [int(row[1]) - 10 for row in ids if row[0] == 1]
        for ids, _ in steps.epoch(epoch, first_step)
    ]


shares = {
    "rows": st.integers(1, 40),
    "ranks": st.integers(1, 4),
    "batch_size": st.integers(1, 5),
    "seed": st.integers(0, 3),
    "epoch": st.integers(0, 3),
}


class TestBatches:
    @given(**shares, shuffle=st.booleans())
    def test_the_ranks_cover_every_row_once_an_epoch(
        self, rows: int, ranks: int, batch_size: int, seed: int, epoch: int, shuffle: bool
    ) -> None:
        found: List[int] = []
        for rank in range(ranks):
            own = batches(
                rows, ranks, rank,
                batch_size=batch_size, seed=seed, shuffle=shuffle, drop_remainder=False,
            )  # fmt: skip
            steps = seen(own, epoch)
            assert len(steps) == own.steps_per_epoch
            found += [number for step in steps for number in step]
        assert sorted(found) == list(range(rows))

    @given(**shares)
    def test_the_rows_of_a_step_do_not_depend_on_how_many_ranks_share_them(
        self, rows: int, ranks: int, batch_size: int, seed: int, epoch: int
    ) -> None:
        rows += ranks * batch_size
        common = {"seed": seed, "shuffle": True}
        alone = seen(batches(rows, batch_size=batch_size * ranks, **common), epoch)
        parts = [
            seen(batches(rows, ranks, rank, batch_size=batch_size, **common), epoch)
            for rank in range(ranks)
        ]
        assert [[n for part in step for n in part] for step in zip(*parts)] == alone
        assert len(alone) == rows // (batch_size * ranks), "the remainder is dropped"

    def test_the_order_depends_on_seed_and_epoch_and_nothing_else(self) -> None:
        def order(seed: int, epoch: int) -> List[int]:
            return list(batches(50, seed=seed, shuffle=True).order(epoch))

        assert order(1, 0) == order(1, 0)
        assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4

    def test_without_shuffling_the_order_is_the_files(self) -> None:
        assert seen(batches(6, batch_size=2), epoch=3) == [[0, 1], [2, 3], [4, 5]]

    def test_an_epoch_can_begin_in_its_middle(self) -> None:
        own = batches(9, batch_size=2, shuffle=True, drop_remainder=False)
        assert seen(own, 1, first_step=3) == seen(own, 1)[3:]

    def test_the_missing_rows_of_a_last_batch_teach_nothing(self) -> None:
        own = batches(3, ranks=2, rank=1, batch_size=2, drop_remainder=False)
        ((ids, labels),) = own.epoch(0)
        assert ids.shape == labels.shape == (2, 3)
        assert ids.dtype == labels.dtype == np.int32
        assert ids.tolist() == [[1, 12, 2], [0, 0, 0]]
        assert labels.tolist() == [[IGNORED_LABEL, 12, 2], [IGNORED_LABEL] * 3]

    def test_less_than_one_step_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="3 rows, less than one step of 2 rows on 2 ranks"):
            batches(3, ranks=2, batch_size=2)
