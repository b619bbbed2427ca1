"""A host that lies: whatever it answers, it runs nothing here, leaves no folder, and spoils
nobody's record but its own."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cli.status import state_record
from orchestrator.cli.unstage import show_trees
from orchestrator.engine.catalogue import Source, list_checkpoints
from orchestrator.engine.mirror import Mirror
from orchestrator.engine.reader import HostRun, Reader
from orchestrator.engine.retention import old_trees
from orchestrator.engine.supervisor import Supervisor
from orchestrator.errors import OrchError, TransportError
from orchestrator.logs.text import printable
from orchestrator.planning.facts import parse_facts
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.state import merge_state
from orchestrator.transport.base import Completed

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
SLOW_IS_FINE = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)


class Lying:
    """A transport whose host answers everything with the same bytes."""

    name = "liar"

    def __init__(self, stdout: bytes, status: int = 0) -> None:
        self.answer = Completed(status, stdout, b"")

    def run(self, *_args: object, **_options: object) -> Completed:
        return self.answer


@given(json_values, st.sampled_from([0, 1, 3, 9]))
@SLOW_IS_FINE
def test_any_answer_of_a_supervisor_is_an_answer_or_one_of_our_errors(value, status):
    for answer in (value, {"error": value}, {"error": {"code": value, "message": value}}):
        liar = Lying(json.dumps(answer).encode(), status)
        supervisor = Supervisor(liar, "python3", "/w/runs/r")  # type: ignore[arg-type]
        with suppress(OrchError):
            assert isinstance(supervisor.status(), dict)


@given(json_values, st.sampled_from(["digest", "bytes", "used", "kept", "error", "trees"]))
@SLOW_IS_FINE
def test_any_list_of_staged_trees_can_be_shown(value, key):
    honest = {"digest": "a" * 64, "bytes": 1, "used": 1.0, "kept": None, "error": None}
    answer = {"trees": value} if key == "trees" else {"trees": [{**honest, key: value}]}
    liar: Any = Lying(json.dumps(answer).encode())
    host: Any = SimpleNamespace(name="liar", workdir="/w", python="python3", shared_workdir=None)
    [outcome] = old_trees([host], {"liar": liar}, [], 1.0, remove=False)
    assert outcome.value is not None or isinstance(outcome.error, OrchError)
    if outcome.value:
        show_trees(outcome.value, dry_run=True)


@pytest.mark.parametrize(
    "file",
    [
        "ranks/../../../etc/cron.d/stdout.log",
        "/etc/passwd",
        "ranks/rank_0/../../plan.json",
        "ranks/rank_0/exit.json",
        "ranks//stdout.log",
        "ranks/a/b/stdout.log",
        "",
    ],
)
def test_a_stream_writes_only_files_of_known_shape(tmp_path, file):
    mirror = Mirror(RunPaths(tmp_path / "run"), "liar")
    with pytest.raises(TransportError):
        mirror.append_data(file, 0, b"x")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("file", ["ranks/rank_1/stdout.log", "ranks/scheduler/stdout.log", "x"])
def test_a_host_cannot_write_the_logs_of_anothers_ranks(tmp_path, file):
    paths = RunPaths(tmp_path / "run")
    supervisor = Supervisor(Lying(b""), "python3", "/w/runs/r")  # type: ignore[arg-type]
    reader = Reader(paths, HostRun(supervisor, ("rank_0",)), lambda _: None, logs=True)
    with pytest.raises(TransportError):
        reader._handle({"t": "data", "file": file, "off": 0, "data": "x"})
    reader._handle({"t": "data", "file": "ranks/rank_0/stdout.log", "off": 0, "data": "x"})
    reader._mirror.close()  # as its thread does, which was not started
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [paths.log("rank_0")]


def listing(name: str) -> bytes:
    entry: Dict[str, Any] = {"rank": 0, "name": name, "size": 1, "mtime_ns": 1}
    return json.dumps({"files": [entry], "strategy": [], "contents": {}}).encode()


@pytest.mark.parametrize("name", ["../../x-1_1.ckpt", "/etc/x-1_1.ckpt", "..", "a/b-1_1.ckpt", ""])
def test_a_catalogue_cannot_name_a_place_outside(name):
    source = Source(
        transport=Lying(listing(name)),  # type: ignore[arg-type]
        python="python3",
        run_dir="/w/runs/r",
        ranks=(0,),
    )
    with pytest.raises(OrchError):
        list_checkpoints(source)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=6), json_values)
@SLOW_IS_FINE
def test_any_facts_are_facts_or_one_of_our_errors(fields, value):
    keys = ("device_ips", "workdir", "hostname", "mindspore", "free_port", "boot_id", "wall")
    for mixed in (fields, {**fields, **dict.fromkeys(keys, value)}):
        with suppress(OrchError):
            parse_facts(mixed, host="liar")


LAUNCH = {
    "event": "launch",
    "wall": 1.0,
    "cluster": "c",
    "mode": "finetune",
    "recipe": "standalone",
    "world_size": 1,
    "hosts": [{"name": "liar", "processes": [{"name": "rank_0", "rank": 0}]}],
}
KINDS = ("process_started", "process_exited", "finished", "stopping", "killed")


@given(st.sampled_from(KINDS), json_values, json_values)
@SLOW_IS_FINE
def test_any_journal_and_metrics_of_a_host_leave_a_state_that_can_be_shown(kind, one, two):
    from orchestrator.cli.status import _closing, _row

    event = {"event": kind, "name": "rank_0", "code": one, "pid": two, "outcome": one, "rank": two}
    keys = ("phase", "step", "steps", "loss", "tokens_per_s_per_p", "step_time_s", "result")
    lines: List[Dict[str, Any]] = [dict.fromkeys(keys, one), dict.fromkeys(keys[::2], two)]
    beat = {"wall": two}
    state = merge_state("r", [LAUNCH], {"liar": [event]}, {"liar": beat}, {"rank_0": lines}, None)
    json.dumps(state_record(state), default=str)
    hosts = {host.name: host for host in state.hosts}
    for process in state.ranks:
        for cell in _row(process, hosts.get(process.host), state, 5.0):
            printable(cell)
    _closing(state, 5.0)


def test_a_name_in_a_plan_cannot_leave_its_folder():
    from orchestrator.errors import PlanError
    from orchestrator.planning.plan import plan_from_json
    from tests.unit.report.made_run import made_plan

    plan = made_plan("r", ["node1"], [[0]])
    assert plan_from_json(plan.to_json()) == plan
    host = plan.hosts[0]
    file = host.files[0]
    hostile = (
        replace(plan, run_id="../r"),
        replace(plan, hosts=(replace(host, host="../../etc"),)),
        replace(plan, hosts=(replace(host, host="a\x1b[2J"),)),
        replace(plan, hosts=(replace(host, run_dir="/w/../../etc"),)),
        replace(plan, hosts=(replace(host, run_dir="etc"),)),
        replace(plan, hosts=(replace(host, files=(replace(file, path="../../.bashrc"),)),)),
        replace(plan, hosts=(replace(host, files=(replace(file, path="/etc/x"),)),)),
        replace(
            plan,
            hosts=(replace(host, processes=(replace(host.processes[0], name="../x"),)),),
        ),
    )
    for changed in hostile:
        # The digest fits: whoever writes a plan can compute it.
        with pytest.raises(PlanError):
            plan_from_json(changed.to_json())


def test_nobody_is_made_to_remove_another_folder(tmp_path):
    from orchestrator.engine.launch import OpenRun
    from orchestrator.engine.pruning import remove_from_hosts
    from orchestrator.runs.journal import Journal
    from tests.unit.report.made_run import made_plan

    paths = RunPaths(tmp_path / "runs" / "r")
    plan = made_plan("r", ["liar"], [[0]])
    plan = replace(plan, hosts=(replace(plan.hosts[0], run_dir="/home"),))

    class Watching(Lying):
        def run(self, argv: Any, **_options: object) -> Completed:  # type: ignore[override]
            raise AssertionError(f"{argv} was run")

    run = OpenRun(paths, Journal(paths.journal), plan, {"liar": Watching(b"")})  # type: ignore[dict-item]
    assert "not the folder of this run" in remove_from_hosts(run)["liar"]
    assert Path("/home").exists()
