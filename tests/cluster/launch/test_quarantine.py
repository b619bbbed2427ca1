"""A quarantined host takes no part in a launch; a spare runs its ranks."""

from __future__ import annotations

import json

from tests.cluster.launch.conftest import standin


def test_a_spare_runs_in_the_place_of_a_quarantined_host(cli, loopback):
    three = loopback(3)
    first, second, spare = (host.name for host in three.hosts)
    inventory = three.inventory(
        groups={"workers": {"hosts": [first, second]}, "spares": {"hosts": [spare]}}
    )
    bad = cli("hosts", "quarantine", "-i", inventory, first, "--reason", "link down")
    assert bad.status == 0, bad.stderr
    done = cli("launch", "-i", inventory, "--run-id", "moved", *standin(), "finetune")
    assert done.status == 0, done.stderr
    note = f"{first} is quarantined until released (link down); {spare} takes its place"
    assert f"note: {note}" in done.stderr
    plan = json.loads(cli.run("moved").plan.read_text("utf-8"))
    assert [host["host"] for host in plan["hosts"]] == [second, spare]
    assert plan["notes"] == [note]
    assert cli("status", "moved", "--json").json()["ranks_succeeded"] == 4
    ran = [host for host in three.hosts if (three.folder / host.name / "workdir" / "runs").exists()]
    assert [host.name for host in ran] == [second, spare]

    cli("hosts", "quarantine", "-i", inventory, spare, "--reason", "ECC", "--for", "1h")
    none = cli("launch", "-i", inventory, "--run-id", "none", *standin(), "finetune")
    assert none.status == 4
    assert f"no spare is left to take the place of {first}: 1 of 2 hosts can work" in none.stderr
