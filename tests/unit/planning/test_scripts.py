"""The rendered scripts, run by a real bash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.plan import HostPlan
from orchestrator.planning.planner import plan
from orchestrator.planning.render import render
from tests.unit.planning.inputs import inventory, job

SHOW = "import json,os,sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"


def planned(folder: Path, setup: str = "", **changes: object) -> HostPlan:
    """One local rank with its files written, as a launch would."""
    setting = f"setup: {json.dumps(setup)}, " if setup else ""
    hosts = inventory(
        f"hosts: localhost\n"
        f'defaults: {{connection: local, device_target: CPU, devices: "0", {setting}'
        f"workdir: {json.dumps(str(folder))}}}\n"
    )
    host = plan(hosts, job(**changes), {}).hosts[0]
    for file in host.files:
        target = Path(host.run_dir, file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.text, encoding="utf-8")
    return host


def run(host: HostPlan, env: Dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "ranks/rank_0/launch.sh"],
        cwd=host.run_dir,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        timeout=60,
        check=False,
    )


text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=25, deadline=None)
@given(value=text, argument=text)
def test_any_value_and_argument_arrives_unchanged(
    tmp_path_factory: pytest.TempPathFactory, value: str, argument: str
) -> None:
    host = planned(
        tmp_path_factory.mktemp("it's $(here)"),
        env={"SAID": value},
        worker_command=(sys.executable, "-c", SHOW, argument),
    )
    done = run(host, {"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    argv, env, cwd = json.loads(done.stdout)
    assert argv == [argument]
    assert env["SAID"] == value
    assert cwd == env["GLM2_RANK_DIR"] == f"{host.run_dir}/ranks/rank_0"


def test_variables_of_another_way_to_start_are_cleared(tmp_path: Path) -> None:
    host = planned(tmp_path, worker_command=(sys.executable, "-c", SHOW))
    done = run(host, {"MS_ROLE": "MS_WORKER", "RANK_TABLE_FILE": "/x", "RANK_ID": "7"})
    _, env, _ = json.loads(done.stdout)
    assert "MS_ROLE" not in env
    assert "RANK_TABLE_FILE" not in env
    assert env["RANK_ID"] == "0"


def test_setup_runs_first_and_the_run_has_the_last_word(tmp_path: Path) -> None:
    line = 'export PYTHONPATH=/from/setup FROM_SETUP="a b" DEVICE_ID=9'
    host = planned(tmp_path, setup=line, worker_command=(sys.executable, "-c", SHOW))
    _, env, _ = json.loads(run(host, {}).stdout)
    assert env["FROM_SETUP"] == "a b"
    assert env["DEVICE_ID"] == "0"


def test_glm2_is_found_before_what_setup_names(tmp_path: Path) -> None:
    package = tmp_path / "runs" / "r1" / "code" / "glm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SHOW)
    host = planned(tmp_path, setup="export PYTHONPATH=/from/setup")
    launch = Path(host.run_dir, "ranks/rank_0/launch.sh")
    launch.write_text(launch.read_text().replace("/opt/python", sys.executable))
    argv, env, _ = json.loads(run(host, {}).stdout)
    assert argv[:2] == ["--config", f"{host.run_dir}/job.yaml"]
    assert env["PYTHONPATH"] == f"{host.run_dir}/code:/from/setup"


def test_a_setup_line_that_fails_ends_the_rank_and_says_so(tmp_path: Path) -> None:
    host = planned(tmp_path, setup="source /no/such/set_env.sh", worker_command=("true",))
    done = run(host, {})
    assert done.returncode == 78
    assert (
        b"setup line of this host failed with status 1: source /no/such/set_env.sh" in done.stderr
    )


def test_the_exit_status_is_that_of_the_worker(tmp_path: Path) -> None:
    assert run(planned(tmp_path, worker_command=("bash", "-c", "exit 37")), {}).returncode == 37


def test_the_worker_replaces_the_shell(tmp_path: Path) -> None:
    host = planned(tmp_path, worker_command=("bash", "-c", "echo $$"))
    process = subprocess.Popen(
        ["bash", "ranks/rank_0/launch.sh"], cwd=host.run_dir, stdout=subprocess.PIPE
    )
    out, _ = process.communicate(timeout=60)
    assert int(out) == process.pid


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("env.sh.j2", name="x")
