"""Which run a launch goes on from."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli.launch import launch
from orchestrator.engine.resume import earlier_run
from orchestrator.errors import Busy, UsageError
from orchestrator.planning.plan import HostPlan, Plan, PlannedFile
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunStore


def made(store: RunStore, run_id: str, mode: str, *, ended: bool = True) -> None:
    """A run as a launch leaves it."""
    config = PlannedFile("job.yaml", "parallel_config: {model_parallel: 2}\n")
    host = HostPlan("a", "a", f"/w/runs/{run_id}", "python3", (), (config,))
    plan = Plan(run_id, "c", mode, "standalone", 2, (host,), 1.0, 1.0, True)
    paths = store.create(run_id)
    paths.plan.write_text(plan.to_json(), encoding="utf-8")
    journal = Journal(paths.journal)
    for event in ("launch", "running", *(("end",) if ended else ())):
        journal.append(event)


def test_the_latest_is_the_newest_that_trained(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for run_id, mode in (("one", "finetune"), ("two", "train"), ("three", "eval")):
        made(store, run_id, mode)
    made(store, "torn", "train")
    store.resolve("torn").plan.write_text("{", encoding="utf-8")
    assert earlier_run(store, "latest").run_id == "two"
    assert earlier_run(store, "one").run_id == "one"
    with pytest.raises(UsageError, match="run three is no training by glm2"):
        earlier_run(store, "three")


def test_without_a_training_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no training to resume in"):
        earlier_run(RunStore(tmp_path), "latest")


def test_a_run_that_still_runs_is_not_resumed(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    made(store, "live", "train", ended=False)
    with pytest.raises(Busy, match="run live still runs") as caught:
        earlier_run(store, "latest")
    assert caught.value.hint == "end it first: glm2-orch stop live"


@pytest.mark.parametrize("words", [["--resume", "finetune"], ["finetune", "--resume"]])
def test_resume_needs_no_run_id_on_either_side_of_the_mode(words: list[str]) -> None:
    with launch.make_context("launch", ["-i", "x", *words]) as context:
        assert (context.params["resume"], context.params["mode"]) == ("latest", "finetune")


def test_resume_takes_a_run_id() -> None:
    with launch.make_context("launch", ["-i", "x", "finetune", "--resume", "one"]) as context:
        assert context.params["resume"] == "one"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--resume"], "goes on with a training, not with predict"),
        (["train", "--resume", "--load-checkpoint", "w.ckpt"], "does not go together"),
    ],
)
def test_what_does_not_go_with_resume_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    assert isinstance(launch, click.Command)
    result = CliRunner().invoke(launch, ["-i", "local", *words])
    assert isinstance(result.exception, UsageError)
    assert message in result.exception.message
