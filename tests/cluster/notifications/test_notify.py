"""Real launches that tell: at their start, their failure and their end, and without a secret in
anything that is kept or can be seen."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import psutil
import pytest

from tests.cluster.launch.conftest import Cli, cli, standin  # noqa: F401 (a fixture)
from tests.unit.notifications.receiver import receiving

pytestmark = pytest.mark.cluster

TOKEN, SIGNING = "token-that-nobody-may-see", "signing-that-nobody-may-see"


@pytest.fixture
def receiver():
    with receiving() as made:
        yield made


@pytest.fixture
def inventory(tmp_path, cli: Cli, receiver) -> Path:  # noqa: F811
    """This machine; told are a webhook (file), DingTalk (environment) and a command."""
    (tmp_path / "url").write_text(receiver.url(f"/hook/{TOKEN}"))
    (tmp_path / "url").chmod(0o600)
    cli.environment["DING"] = receiver.url(f"/robot?access_token={TOKEN}")
    cli.environment["DING_SIGN"] = SIGNING
    hook = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"
    file = tmp_path / "here.yaml"
    content: Dict[str, Any] = {
        "hosts": "localhost",
        "defaults": {
            "connection": "local",
            "device_target": "CPU",
            "devices": "[0,2)",
            "workdir": f"{tmp_path}/work",
        },
        "notify": [
            {"to": "webhook", "url_file": "url"},
            {"to": "dingtalk", "url_env": "DING", "secret_env": "DING_SIGN", "on": ["failure"]},
            {"to": "command", "command": [sys.executable, "-c", hook, str(tmp_path / "hook.txt")]},
        ],
    }
    file.write_text(json.dumps(content))
    return file


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def told(cli: Cli, kind: str = "notified") -> List[Dict[str, Any]]:  # noqa: F811
    from orchestrator.runs.journal import read_events

    return [event for event in read_events(cli.run().journal) if event["event"] == kind]


def test_a_failure_is_told_and_no_secret_is_left_anywhere(
    cli: Cli,  # noqa: F811
    inventory: Path,
    receiver,
    tmp_path,
):
    cli.environment["STANDIN_FAIL"] = "1:7"
    receiver.hang.clear()  # whoever sends is there until it was seen
    process = cli.start("launch", "-i", inventory, "--skip-preflight", *standin(3), "finetune")
    seen = set()

    def over() -> bool:
        seen.update(" ".join(arguments) for arguments in command_lines())
        if any("notify send" in words for words in seen):
            receiver.hang.set()
        return process.poll() is not None and receiver.hang.is_set()

    wait_for(over)
    out, err = process.communicate()
    assert process.returncode == 6
    wait_for(lambda: len(told(cli)) == 5)
    assert sorted(event["of"] for event in told(cli)) == ["failure"] * 3 + ["start"] * 2
    assert {body.get("event") for body in receiver.bodies} == {"start", "failure", None}
    (ding,) = [path for path in receiver.paths if path.startswith("/robot")]
    assert "sign=" in ding
    hooks = [json.loads(line) for line in (tmp_path / "hook.txt").read_text().splitlines()]
    assert sorted(message["event"] for message in hooks) == ["failure", "start"]
    kept = [path for root in (cli.home, tmp_path / "work") for path in root.rglob("*")]
    texts = [path.read_bytes() for path in kept if path.is_file()]
    assert len(texts) > 10
    for secret in (TOKEN, SIGNING):
        assert secret not in out + err
        assert not [words for words in seen if secret in words]
        assert not [text for text in texts if secret.encode() in text]


def test_a_dead_receiver_delays_nothing_and_is_journaled(
    cli: Cli,  # noqa: F811
    inventory: Path,
    receiver,
):
    receiver.hang.clear()
    del cli.environment["DING"]
    cli.environment["STANDIN_FAIL"] = "0:3"
    done = cli("launch", "-i", inventory, "--skip-preflight", *standin(3), "finetune", "--json")
    assert done.status == 6
    assert not [event for event in told(cli) if event["to"] == "webhook 1"]
    wait_for(lambda: told(cli, "notify-failed"))
    (failed,) = told(cli, "notify-failed")
    assert failed["problem"] == "its URL is missing: DING is not set"
    receiver.hang.set()
    wait_for(lambda: len([e for e in told(cli) if e["to"] == "webhook 1"]) == 2)
    shown = cli("status")
    assert shown.status == 6
    assert "dingtalk 2 was not told of its failure: its URL is missing" in shown.stderr


def test_receivers_can_be_tried(cli: Cli, inventory: Path, receiver):  # noqa: F811
    del cli.environment["DING"]
    done = cli("notify", "test", "-i", inventory, "--json")
    assert done.status == 11
    problems = [one["problem"] for one in done.json()["receivers"]]
    assert problems == [None, "its URL is missing: DING is not set", None]
    assert "dingtalk 2: not taken" in done.stderr


def command_lines() -> List[List[str]]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real == os.getuid():
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found
