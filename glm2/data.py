"""AdvertiseGen rows, and the batches of token ids that a rank trains on."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

import numpy as np

from glm2 import sample
from glm2.config import IGNORED_LABEL
from glm2.errors import ConfigError
from glm2.metrics import warn
from glm2.settings import Dataset
from glm2.tokenizer import Tokenizer, build_prompt


@dataclass(frozen=True)
class Row:
    """One example: the attributes asked for, and the text that describes them."""

    content: str
    summary: str


@dataclass(frozen=True)
class BadLine:
    """A line that is not a row, by its number from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and the lines of it that are none."""

    rows: Tuple[Row, ...]
    bad: Tuple[BadLine, ...]


def read_rows(file: str | Path) -> Rows:
    """Read one JSON object a line with the keys ``content`` and ``summary``."""
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the dataset {file}: {error.strerror}",
            hint="set data_loader.dataset_dir, or give --train_dataset_dir / --eval_dataset_dir",
        ) from error
    rows: List[Row] = []
    bad: List[BadLine] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line.decode("utf-8"))))
        except ValueError as error:
            bad.append(BadLine(number, str(error)))
    if not rows:
        reason = f"; line {bad[0].line}: {bad[0].reason}" if bad else ""
        raise ConfigError(
            f"the dataset {file} has no rows{reason}",
            hint='each line is {"content": "…", "summary": "…"}',
        )
    return Rows(tuple(rows), tuple(bad))


def good_rows(dataset: Dataset) -> List[Row]:
    """The rows of a dataset; the user is told which lines are none, and how many."""
    found = read_rows(sample.resolve(dataset.file))
    if found.bad:
        shown = ", ".join(f"line {bad.line}: {bad.reason}" for bad in found.bad[:5])
        more = f" and {len(found.bad) - 5} more" if len(found.bad) > 5 else ""
        warn(f"{dataset.file}: {len(found.bad)} lines are no rows and left out: {shown}{more}")
    return list(found.rows)


def _row(value: object) -> Row:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    for key in ("content", "summary"):
        if not isinstance(value.get(key), str):
            raise ValueError(f"{key} is missing or not text")
    return Row(value["content"], value["summary"])


def encode_row(row: Row, tokenizer: Tokenizer, dataset: Dataset) -> Tuple[List[int], List[int]]:
    """Token ids and labels of a training row, each max_source + max_target + 1 long.

    ids = [gMASK] sop prompt (cut) + summary (cut) + eos + padding; the labels of the prompt
    and of the padding are IGNORED_LABEL (version 2 of the guide's ADGenDataLoader).
    """
    prompt = encode_prompt(row.content, tokenizer, dataset.max_source_length)
    target = tokenizer.encode(row.summary, special=False)[: dataset.max_target_length]
    target.append(tokenizer.eos_id)
    padding = dataset.width - len(prompt) - len(target)
    padded = tokenizer.pad_id if dataset.learn_padding else IGNORED_LABEL
    return (
        prompt + target + [tokenizer.pad_id] * padding,
        [IGNORED_LABEL] * len(prompt) + target + [padded] * padding,
    )


def encode_prompt(content: str, tokenizer: Tokenizer, limit: int) -> List[int]:
    """``[gMASK] sop`` and the prompt of one round, cut to ``limit`` tokens."""
    return tokenizer.encode(build_prompt(content))[:limit]


class Batches:
    """The steps of a rank through a dataset, the same in every process that counts along.

    A step takes ``batch_size · accumulation · data_parallel`` rows in the order of the epoch;
    rank d of the data-parallel ranks takes the d-th part of them, so that the rows of a step do
    not depend on how many ranks share them. ``accumulation`` is how many batches a rank works
    off in a step.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        dataset: Dataset,
        *,
        ranks: int = 1,
        rank: int = 0,
        accumulation: int = 1,
    ) -> None:
        self.rows, self.tokenizer, self.dataset = rows, tokenizer, dataset
        self.ranks, self.rank = ranks, rank
        self.rank_rows = dataset.batch_size * accumulation
        self.global_batch = self.rank_rows * ranks
        full, rest = divmod(len(rows), self.global_batch)
        self.steps_per_epoch = full + (0 if dataset.drop_remainder or not rest else 1)
        if not self.steps_per_epoch:
            raise ConfigError(
                f"{dataset.file} has {len(rows)} rows, less than one step of "
                f"{self.rank_rows} rows on {ranks} ranks",
                hint="lower batch_size, or set drop_remainder: False",
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Token ids and labels of an epoch's steps (from 0), int32.

        Each is [batch_size · accumulation, seq].
        """
        order = self.order(epoch)
        for step in range(first_step, self.steps_per_epoch):
            begin = step * self.global_batch + self.rank * self.rank_rows
            yield self.batch(order[begin : begin + self.rank_rows])

    def crc(self) -> int:
        """CRC-32 of all rows and the seed: it changes with the rows or their order."""
        crc = zlib.crc32(f"{self.dataset.shuffle} {self.dataset.seed}".encode())
        for row in self.rows:
            crc = zlib.crc32(f"{row.content}\n{row.summary}\n".encode(), crc)
        return crc

    def order(self, epoch: int) -> np.ndarray:
        """Row numbers in the order of an epoch."""
        if not self.dataset.shuffle:
            return np.arange(len(self.rows))
        return np.random.default_rng([self.dataset.seed, epoch]).permutation(len(self.rows))

    def batch(self, numbers: Sequence[int]) -> Tuple[np.ndarray, np.ndarray]:
        """The named rows; missing ones of a last batch become rows with nothing to learn."""
        encoded = [encode_row(self.rows[i], self.tokenizer, self.dataset) for i in numbers]
        width = self.dataset.width
        empty = ([self.tokenizer.pad_id] * width, [IGNORED_LABEL] * width)
        encoded += [empty] * (self.rank_rows - len(encoded))
        ids, labels = zip(*encoded)
        return np.array(ids, np.int32), np.array(labels, np.int32)
