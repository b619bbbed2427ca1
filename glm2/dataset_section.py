"""The sections ``train_dataset`` and ``eval_dataset`` of the guide's YAML -> Dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from glm2.yaml_source import Section, known_type


@dataclass(frozen=True)
class Dataset:
    """``train_dataset`` or ``eval_dataset``."""

    file: str
    """AdvertiseGen rows, one JSON object a line; ``sample:train.json`` is the built-in sample."""
    tokenizer: str
    """The sentencepiece model; ``sample:tokenizer.model`` is the built-in one."""
    shuffle: bool = False
    max_source_length: int = 64
    """Tokens of the prompt at most, with the two that begin it."""
    max_target_length: int = 128
    """Tokens of the answer at most, without the one that ends it."""
    batch_size: int = 1
    """Rows of each rank in a step."""
    drop_remainder: bool = True
    """Leave out the rows that do not fill the last batch of an epoch."""
    learn_padding: bool = False
    """``ignore_pad_token_for_loss: False``."""
    seed: int = 0

    @property
    def width(self) -> int:
        """Tokens of a training row: prompt, answer and the token that ends it, with padding."""
        return self.max_source_length + self.max_target_length + 1

    @property
    def most_learned(self) -> int:
        """Tokens of a training row that are learned, at most."""
        return self.width if self.learn_padding else self.max_target_length + 1

    def at(self, place: str, name: str) -> Dataset:
        """The same with the rows of ``place``, a file or the folder that has a file ``name``."""
        file = Path(place) / name if Path(place).is_dir() else Path(place)
        return replace(self, file=str(file))


def read_dataset(top: Section, name: str, batch_size: Optional[int]) -> Optional[Dataset]:
    """``train_dataset`` or ``eval_dataset``; None where it is absent.

    ``batch_size`` is that of ``runner_config``, which comes first for training.
    """
    task = top.section(f"{name}_task")
    known_type(task, "KeyWordGenDataset", "KeyWordGenDataset")
    alias = task.section("dataset_config").left
    task.close()
    section = top.section(name)
    if alias and alias != section.left:
        raise task.error("dataset_config", f"differs from {name}", f"write it as *{name}")
    if not section.left:
        return None
    loader = section.section("data_loader")
    known_type(loader, "ADGenDataLoader", "ADGenDataLoader")
    file = loader.take("dataset_dir", str)
    shuffle = loader.take("shuffle", bool, False)
    if loader.take("version", int, 2) != 2:
        raise loader.error("version", "must be 2", "version 1 is the row format of ChatGLM-6B")
    if loader.take("origin_columns", list, ["content", "summary"]) != ["content", "summary"]:
        raise loader.error("origin_columns", "must be [content, summary]")
    loader.take("phase", str, "")
    loader.close()
    tokenizer = section.section("tokenizer")
    known_type(tokenizer, "ChatGLM2Tokenizer", "ChatGLM2Tokenizer")
    vocabulary = tokenizer.take("vocab_file", str)
    tokenizer.close()
    if section.take("repeat", int, 1) != 1:
        raise section.error("repeat", "must be 1", "use runner_config.epochs")
    own_batch = section.take("batch_size", int, 1, least=1)
    dataset = Dataset(
        file=file,
        tokenizer=vocabulary,
        shuffle=shuffle,
        max_source_length=section.take("max_source_length", int, 64, least=1),
        max_target_length=section.take("max_target_length", int, 128, least=1),
        # As in MindFormers, runner_config.batch_size comes first for training.
        batch_size=own_batch if batch_size is None else batch_size,
        drop_remainder=section.take("drop_remainder", bool, True),
        learn_padding=not section.take("ignore_pad_token_for_loss", bool, True),
        seed=section.take("seed", int, 0, least=0),
    )
    section.ignore("input_columns", "num_parallel_workers", "python_multiprocessing",
                   "numa_enable", "prefetch_size")  # fmt: skip
    section.close()
    return dataset
