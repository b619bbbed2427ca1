"""The worker's YAML: found, read, and changed by ``--set``."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import JobError, Location, UsageError
from orchestrator.worker_config import WorkerConfig, load_config, parse_config, set_value

TEXT = """\
seed: 0
parallel_config:
  data_parallel: 8
  model_parallel: 1
train_dataset: &train_dataset
  batch_size: 1
train_dataset_task:
  dataset_config: *train_dataset
callbacks:
  - type: MFLossMonitor
  - type: CheckpointMonitor
empty:
not_our_key: {deep: [1]}
"""
OPTION = Location("--set x")


@pytest.fixture
def config() -> WorkerConfig:
    return parse_config(TEXT, "c.yaml", "c")


def test_all_keys_are_kept(config: WorkerConfig) -> None:
    assert config.values["not_our_key"] == {"deep": [1]}
    assert config.place("parallel_config", "data_parallel") == Location("c.yaml", 3, 18)


def test_set_replaces_and_leaves_the_original(config: WorkerConfig) -> None:
    changed = set_value(config, "parallel_config.model_parallel", 2, OPTION)
    assert changed.values["parallel_config"] == {"data_parallel": 8, "model_parallel": 2}
    assert config.values["parallel_config"] == {"data_parallel": 8, "model_parallel": 1}
    assert changed.place("parallel_config", "model_parallel") == OPTION


def test_set_reaches_what_an_alias_shares(config: WorkerConfig) -> None:
    changed = set_value(config, "train_dataset.batch_size", 4, OPTION)
    assert changed.values["train_dataset_task"] == {"dataset_config": {"batch_size": 4}}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a.b.c", ("a", "b", "c")),
        ("empty.x", ("empty", "x")),
        ("seed", ("seed",)),
        ("parallel_config", ("parallel_config",)),
    ],
)
def test_set_makes_what_is_missing(config: WorkerConfig, key: str, path: tuple[str, ...]) -> None:
    at: object = set_value(config, key, "new", OPTION).values
    for part in path:
        assert isinstance(at, dict)
        at = at[part]
    assert at == "new"


def test_set_names_items_of_lists_by_number(config: WorkerConfig) -> None:
    changed = set_value(config, "callbacks.1.type", "Other", OPTION)
    assert changed.values["callbacks"] == [{"type": "MFLossMonitor"}, {"type": "Other"}]


def test_places_below_a_replaced_value_are_forgotten(config: WorkerConfig) -> None:
    changed = set_value(config, "parallel_config", {"data_parallel": 2}, OPTION)
    assert changed.place("parallel_config", "data_parallel") is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seed.x", "`seed` is the value '0', not a mapping (c.yaml:1:7)"),
        ("seed.x.y", "`seed` is the value '0'"),
        ("callbacks.2.type", "a list of 2 items and has no '2'"),
        ("callbacks.first", "has no 'first'"),
    ],
)
def test_set_through_a_value_is_an_error(config: WorkerConfig, key: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        set_value(config, key, 1, Location(f"--set {key}"))
    assert f"--set {key}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["", ".a", "a..b", "a."])
def test_set_with_an_empty_part(config: WorkerConfig, key: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        set_value(config, key, 1, OPTION)


@pytest.mark.parametrize("text", ["[1]", "just text", "3"])
def test_a_configuration_is_a_mapping(text: str) -> None:
    with pytest.raises(JobError, match="must be a mapping"):
        parse_config(text, "c.yaml", "c")


def test_found_by_name_or_path(tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "tiny_cpu.yaml").write_text("a: 1\n")
    (tmp_path / "mine.yaml").write_text("a: 2\n")

    def values(name: str) -> object:
        found = load_config(name, config_dir=tmp_path / "shipped", folder=tmp_path)
        return found.values

    assert values("tiny_cpu") == {"a": 1}
    assert values("mine.yaml") == {"a": 2}
    assert values("./mine.yaml") == {"a": 2}
    assert values(str(tmp_path / "mine.yaml")) == {"a": 2}
    with pytest.raises(JobError, match="no configuration named 'tiny_cup'") as caught:
        values("tiny_cup")
    assert "did you mean `tiny_cpu`" in caught.value.hint
    with pytest.raises(JobError, match="cannot read the configuration"):
        values("none.yaml")


def test_mistakes_in_the_yaml_are_placed() -> None:
    with pytest.raises(JobError) as caught:
        parse_config("a: 1\nb: 2\na: 3\n", "c.yaml", "c")
    assert caught.value.location == Location("c.yaml", 3, 1)
