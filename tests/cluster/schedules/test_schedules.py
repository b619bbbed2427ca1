"""Schedules with real jobs and a real cron daemon."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from orchestrator.runs.journal import read_events
from orchestrator.schedules.store import ScheduleStore
from tests.cluster.launch.conftest import Cli, cli, standin  # noqa: F401 (a fixture)

pytestmark = pytest.mark.cluster


@pytest.fixture
def crontab(tmp_path, cli: Cli):  # noqa: F811
    """A crontab that is one file, for tests that start their schedules themselves."""
    folder = tmp_path / "tools"
    folder.mkdir()
    tool = folder / "crontab"
    tool.write_text(
        '#!/bin/sh\n[ "$1" = - ] && exec cat >"$0.txt"\n[ "$1" = -r ] && exec rm "$0.txt"\n'
        'cat "$0.txt" 2>/dev/null || { echo "no crontab for me" >&2; exit 1; }\n'
    )
    tool.chmod(0o755)
    cli.environment["PATH"] = f"{folder}:{cli.environment['PATH']}"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    return this_machine(tmp_path)


def this_machine(folder: Path) -> Path:
    """An inventory of it, with a workdir that no other run leases."""
    file = folder / "here.yaml"
    file.write_text(
        "hosts: localhost\n"
        "defaults: {connection: local, device_target: CPU, devices: '[0,2)', "
        f"workdir: '{folder}/work'}}\n"
    )
    return file


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def add(cli: Cli, *command: object) -> None:  # noqa: F811
    words = ("schedule", "add", "nightly", "--cron", "* * * * *", "--with", "cron", "--")
    done = cli(*words, *command)
    assert done.status == 0, done.stderr


IN_PRIVATE = """
set -e
mkdir -p /var/spool/cron
mount -t tmpfs -o mode=755 none /var/spool/cron
mkdir -m 1730 /var/spool/cron/crontabs
mkdir -p /etc/cron.d
mount -t tmpfs none /etc/cron.d
[ ! -e /etc/crontab ] || mount --bind /dev/null /etc/crontab
mount -t tmpfs none /run
"$@"
exec cron -f
"""


def _private_cron() -> str:
    """Why no cron of our own can run here; empty: it can."""
    if os.getuid() != 0:
        return "only root can give cron a spool folder of its own"
    if not all(map(shutil.which, ("cron", "crontab", "unshare"))):
        return "no cron here"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "no mount namespaces here"


@pytest.fixture(scope="module", autouse=True)
def nightly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Optional[Cli]]:
    """A schedule that a real cron starts at the next full minute; other tests run meanwhile.

    Cron's files are of a mount namespace of its own: the machine's crontabs stay untouched.
    """
    if _private_cron():
        yield None
        return
    folder = tmp_path_factory.mktemp("cron")
    made = Cli(folder / "home")
    words = ["schedule", "add", "nightly", "--cron", "* * * * *", "--with", "cron", "--", "launch"]
    job = ["-i", str(this_machine(folder)), "--skip-preflight", *standin(2), "finetune"]
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_PRIVATE, "cron"]
    with open(folder / "log", "wb") as log:
        cron = subprocess.Popen(
            [*private, *made.command(*words, *job)], env=made.environment, stderr=log
        )
    yield made
    status = cron.poll()
    cron.terminate()
    cron.wait(timeout=30)
    assert status is None, (folder / "log").read_text()


def test_a_stopped_starter_leaves_the_job_running_and_the_next_time_is_skipped(
    cli: Cli,  # noqa: F811
    crontab: None,
    inventory: Path,
):
    add(cli, "launch", "-i", inventory, "--skip-preflight", *standin(5000), "finetune")
    starter = cli.start("schedule", "run", "nightly")

    def running() -> bool:
        kinds = [
            e["event"] for name in cli.store.names() for e in read_events(cli.run(name).journal)
        ]
        return "running" in kinds

    try:
        wait_for(running, 60)
        assert cli("schedule", "run", "nightly").status == 9
    finally:
        starter.send_signal(signal.SIGTERM)
        starter.communicate(timeout=60)
    assert starter.returncode == 143
    run_id = cli.run().run_id
    assert run_id.startswith("nightly-")
    again = cli("schedule", "run", "nightly")
    assert again.status == 9
    assert f"run {run_id} goes on" in again.stderr
    assert cli("stop", run_id).status == 0
    (row,) = cli("schedule", "list", "--json").json()["schedules"]
    assert len(row["skipped"]) == 2
    assert row["last"]["run_id"] == run_id


@pytest.mark.slow
@pytest.mark.skipif(bool(_private_cron()), reason=_private_cron() or "none")
def test_a_real_cron_starts_a_real_launch(nightly: Cli) -> None:
    """The first of its runs: the next full minute may have come meanwhile."""
    journal = ScheduleStore(nightly.home).paths("nightly").journal

    def ends() -> List[Dict[str, Any]]:
        return [event for event in read_events(journal) if event["event"] == "ended"]

    wait_for(ends, 150)
    first = ends()[0]
    assert first["exit_status"] == 0
    assert nightly("status", first["run_id"]).status == 0
    (row,) = nightly("schedule", "list", "--json").json()["schedules"]
    assert row["missed"] == []
