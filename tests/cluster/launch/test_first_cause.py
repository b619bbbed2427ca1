"""The first cause at the end of real launches, and again from what they left behind."""

from __future__ import annotations

import json

import pytest

from tests.cluster.launch.conftest import processes_of

BROKEN = """
now() { date +%F-%T.%3N.000; }
case "$RANK_ID" in
  0) echo "EI0006: $(now) Getting socket times out."; sleep 60;;
  1) sleep 60;;
  2) sleep 1; echo "EI0006: $(now) Getting socket times out."; sleep 60;;
  3) sleep 1; echo "EJ0001: $(now) Failed to initialize the HCCP process."; sleep 0.2; exit 1;;
esac
"""
KILLED = """
if [ "$RANK_ID" = 1 ]; then sleep 0.5; kill -9 $$; fi
sleep 60
"""


@pytest.fixture
def launch(cli, loopback, tmp_path):
    """Launch a script on two hosts of two ranks each."""

    def run(script, run_id):
        file = tmp_path / "worker.sh"
        file.write_text(script)
        inventory = loopback(2).inventory()
        command = ("--worker-command", f"bash {file}", "--run-id", run_id, "-o", "json")
        return cli("launch", "-i", inventory, *command, "finetune")

    return run


def test_the_root_is_named_not_those_that_wait_nor_those_that_we_ended(cli, launch):
    done = launch(BROKEN, "broken")
    assert done.status == 6, done.stderr
    found = done.json()["diagnosis"]
    assert (found["rule"], found["code"], found["rank"]) == ("own-error", "EJ0001", 3)
    assert found["host"] == "127.0.1.2"
    assert {"0", "1", "2"} <= set(found["collateral"])
    assert "first cause: rank 3 on 127.0.1.2: EJ0001" in done.stderr
    assert "rank 3 on 127.0.1.2: EJ0001" in done.stderr.splitlines()[-1]
    assert processes_of("broken") == []

    again = cli("diagnose", "broken", "-o", "json")
    assert again.status == 0
    assert again.json()["place"] == "logs/rank_3.log:1"
    logs = cli("diagnose", cli.run("broken").logs)
    assert "first cause: rank 3: EJ0001" in logs.stdout


def test_a_rank_that_the_system_killed(cli, launch):
    done = launch(KILLED, "killed")
    assert done.status == 6, done.stderr
    found = json.loads(done.stdout)["diagnosis"]
    assert (found["code"], found["rank"]) == ("killed", 1)
    assert "rank_1 ended with exit status 137" in found["line"]
