"""The worker's YAML against the ranks there are: every rule, its place, and all at once."""

from __future__ import annotations

from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PlanError
from orchestrator.planning.plan import plan_from_json
from orchestrator.planning.planner import plan
from orchestrator.planning.strategy import Strategy, check_strategy, review_strategy
from orchestrator.worker_config import WorkerConfig
from tests.unit.planning.inputs import config, cpu, job

GUIDE = """\
do_eval: False
model:
  model_config:
    num_layers: 28
    num_attention_heads: 32
    seq_length: 193
train_dataset: &train
  max_source_length: 64
  max_target_length: 128
  batch_size: 8
eval_dataset:
  max_source_length: 64
  max_target_length: 128
  batch_size: 8
parallel_config:
  data_parallel: 4
  model_parallel: 4
  pipeline_stage: 2
  micro_batch_num: 2
"""
"""The keys of the guide that are judged; 32 ranks."""

FOUR_HOSTS = [8, 8, 8, 8]


def review(
    text: str, devices: List[int], *, mode: str = "finetune", command: Tuple[str, ...] = ()
) -> Strategy:
    return review_strategy(job(config=config(text), mode=mode, worker_command=command), devices)


def messages(found: Strategy) -> List[str]:
    return [f"{p.location}: {p.message}" for p in found.problems.found]


def test_the_guide_s_keys_fit() -> None:
    found = review(GUIDE, FOUR_HOSTS)
    assert (messages(found), found.warnings) == ([], [])


CASES = [
    (
        ("data_parallel: 4", "data_parallel: 8"),
        "c.yaml:16:18: data_parallel 8 · model_parallel 4 · pipeline_stage 2 = 64, but there are "
        "32 ranks",
        "add --set parallel_config.data_parallel=4",
    ),
    (
        ("data_parallel: 4\n  model_parallel: 4", "model_parallel: 32"),
        "c.yaml:16:19: model_parallel 32 · pipeline_stage 2 does not divide 32 ranks",
        "change the layout",
    ),
    (
        ("num_attention_heads: 32", "num_attention_heads: 30"),
        "c.yaml:17:19: model_parallel 4 does not divide the 30 attention heads "
        "(model.model_config.num_attention_heads)",
        "use one of 1, 2, 3, 5, 6, 10, 15, 30",
    ),
    (
        ("num_attention_heads: 32", "num_heads: 30"),  # as other models of MindFormers say it
        "c.yaml:17:19: model_parallel 4 does not divide the 30 attention heads "
        "(model.model_config.num_heads)",
        "use one of",
    ),
    (
        ("num_layers: 28", "num_layers: 27"),
        "c.yaml:18:19: pipeline_stage 2 does not divide the 27 layers "
        "(model.model_config.num_layers)",
        "use one of 1, 3, 9, 27",
    ),
    (
        ("micro_batch_num: 2", "micro_batch_num: 1"),
        "c.yaml:19:20: micro_batch_num 1 is less than pipeline_stage 2",
        "use at least 2",
    ),
    (
        ("seq_length: 193", "seq_length: 192"),
        "c.yaml:6:17: model.model_config.seq_length is 192, but max_source_length 64 + "
        "max_target_length 128 + 1 of train_dataset is 193",
        "add --set model.model_config.seq_length=193",
    ),
    (
        ("seq_length: 193", "seq_length: long"),
        "c.yaml:6:17: model.model_config.seq_length is ''long'', not a number from 1 up",
        "correct it",
    ),
]


@pytest.mark.parametrize(("change", "said", "hint"), CASES)
def test_each_rule_names_its_line(change: Tuple[str, str], said: str, hint: str) -> None:
    assert change[0] in GUIDE
    found = review(GUIDE.replace(*change), FOUR_HOSTS)
    assert messages(found) == [said]
    assert hint in found.problems.found[0].hint


def test_all_problems_come_at_once() -> None:
    text = GUIDE
    for change, _, _ in (CASES[0], CASES[2], CASES[4], CASES[5], CASES[6]):
        text = text.replace(*change)
    assert messages(review(text, FOUR_HOSTS)) == [CASES[i][1] for i in (0, 2, 4, 5, 6)]
    with pytest.raises(PlanError, match="the configuration c has 5 problems") as caught:
        check_strategy(job(config=config(text)), FOUR_HOSTS)
    assert all(CASES[i][1] in str(caught.value) for i in (0, 2, 4, 5, 6))


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([8, 8, 8, 8], []),
        ([4] * 8, []),
        ([2] * 16, ["c.yaml:17:19: model_parallel 4 does not fit inside a host with 2 devices"]),
        ([6, 6, 6, 6, 8], ["c.yaml:17:19: model_parallel 4 does not fit inside a host with 6 dev"]),
    ],
)
def test_a_model_parallel_group_that_leaves_its_host_is_a_warning(
    devices: List[int], said: List[str]
) -> None:
    found = review(GUIDE, devices)
    assert messages(found) == []
    assert [w[: len(s)] for w, s in zip(found.warnings, said)] == said
    assert len(found.warnings) == len(said)


def test_warnings_become_notes_of_the_plan() -> None:
    text = "parallel_config: {data_parallel: 2, model_parallel: 2}\n"
    made = plan(cpu("10.0.0.[1-4]", "[0,1)"), job(config=config(text)), {}, ["x stands in"])
    assert made.notes[0] == "x stands in"
    assert "does not fit inside a host with 1 device:" in made.notes[1]
    assert plan_from_json(made.to_json()) == made


def test_lengths_are_for_training_alone_and_layouts_for_several_ranks() -> None:
    text = GUIDE.replace("seq_length: 193", "seq_length: 256")
    assert messages(review(text, FOUR_HOSTS, mode="eval")) == []
    assert messages(review(text, FOUR_HOSTS, mode="predict")) == []
    assert len(messages(review(text, FOUR_HOSTS, mode="train"))) == 1
    assert messages(review(GUIDE, [1])) == []


EVAL = GUIDE.replace("do_eval: False", "do_eval: True")
UNEVEN = EVAL.replace("64\n  max_target_length: 128\n  batch_size: 8\npar", "32\n"
                      "  max_target_length: 64\n  batch_size: 4\npar")  # fmt: skip


def test_do_eval_needs_equal_datasets_where_one_graph_does_both() -> None:
    assert messages(review(EVAL, FOUR_HOSTS, command=("run",))) == []
    found = review(UNEVEN, FOUR_HOSTS, command=("python", "run_mindformer.py"))
    assert messages(found) == [
        "c.yaml:12:22: do_eval: max_source_length is 32 in eval_dataset, but 64 in train_dataset",
        "c.yaml:13:22: do_eval: max_target_length is 64 in eval_dataset, but 128 in train_dataset",
        "c.yaml:14:15: do_eval: batch_size is 4 in eval_dataset, but 8 in train_dataset",
    ]
    assert found.problems.found[2].hint == "make them the same: --set eval_dataset.batch_size=8"


def test_glm2_evaluates_uneven_datasets_with_a_warning() -> None:
    found = review(UNEVEN, FOUR_HOSTS)
    assert messages(found) == []
    assert len(found.warnings) == 3
    assert found.warnings[2] == (
        "c.yaml:14:15: do_eval: batch_size is 4 in eval_dataset, but 8 in train_dataset; the guide "
        "has them equal"
    )


def test_do_eval_needs_a_dataset() -> None:
    text = "do_eval: True\ntrain_dataset: {batch_size: 1}\n"
    assert messages(review(text, [1])) == [
        "c.yaml:1:10: do_eval is True, but there is no eval_dataset"
    ]


def test_without_a_configuration_there_is_nothing_to_judge() -> None:
    assert check_strategy(job(config=None, worker_command=("true",)), [8]) == ()


KEYS = [line.split(":")[0].strip() for line in GUIDE.splitlines()]
odd = st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=3)
values = st.recursive(
    odd,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
)


@given(st.dictionaries(st.sampled_from(KEYS), values), st.lists(st.integers(1, 8), min_size=1))
def test_no_configuration_is_too_odd_to_judge(content: dict, devices: List[int]) -> None:
    found = review_strategy(job(config=WorkerConfig("c", content)), devices)
    assert all(problem.message for problem in found.problems.found)


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)
)
def test_what_fits_is_what_multiplies(dp: int, mp: int, pp: int, hosts: int, devices: int) -> None:
    """No problem exactly when the product is the number of ranks; a warning exactly when a group
    of neighbouring ranks spans two hosts."""
    text = f"parallel_config: {{data_parallel: {dp}, model_parallel: {mp}, pipeline_stage: {pp}}}\n"
    ranks = hosts * devices
    found = review(text, [devices] * hosts)
    assert bool(messages(found)) == (ranks > 1 and dp * mp * pp != ranks)
    if ranks > 1 and dp * mp * pp == ranks:
        host_of = [rank // devices for rank in range(ranks)]
        spans = any(len(set(host_of[first : first + mp])) > 1 for first in range(0, ranks, mp))
        assert bool(found.warnings) == spans
