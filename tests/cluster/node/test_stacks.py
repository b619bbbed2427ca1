"""Stacks of the ranks of a run, with real processes."""

from __future__ import annotations

import os
import signal
import sys
from typing import Callable, Dict

import psutil

from tests.cluster.node.host import Host, Json, alive, sh, wait_until

FOREVER = sh("exec sleep 600")
WORKER = """
import faulthandler, os, signal, time
log = open(os.environ["FOLDER"] + "/stacks.log", "a")
faulthandler.register(signal.SIGUSR1, file=log)
def all_reduce():
    print("up", flush=True)
    time.sleep(600)
all_reduce()
"""


def worker(name: str, wrapped: str = "exec") -> list:
    return sh(f"FOLDER=ranks/{name} {wrapped} {sys.executable} -c '{WORKER}'")


def stacks(host: Host) -> Dict[str, Json]:
    return {one["name"]: one for one in host.do("stacks")["stacks"]}


def test_workers_that_offer_their_stacks_are_asked_and_nobody_else(
    new_host: Callable[..., Host], any_python: str
) -> None:
    host = new_host(any_python)
    waits = "trap 'exit 9' USR2; echo up; while :; do sleep 0.1; done"
    wrapped = worker("rank_1", wrapped="env")
    wrapped[-1] += "; exit $?"
    host.launch(worker("rank_0"), wrapped, sh(waits), FOREVER)
    for rank in range(3):
        host.wait_file(f"ranks/rank_{rank}/stdout.log")
    found = stacks(host)
    for name in ("rank_0", "rank_1"):
        assert found[name]["source"] == "faulthandler", found[name]
        assert "in all_reduce" in found[name]["text"]
    pids = {event["name"]: event["pid"] for event in host.events("process_started")}
    assert found["rank_0"]["pid"] == pids["rank_0"]
    assert found["rank_1"]["pid"] != pids["rank_1"]  # the worker below its shell
    assert found["rank_3"]["source"] == "proc"
    assert found["rank_3"]["text"].startswith(f"sleep pid {pids['rank_3']} thread")
    assert all(alive(pid) for pid in pids.values())
    again = stacks(host)
    assert again["rank_0"]["text"].count("in all_reduce") == 1
    host.do("stop")


def test_a_stopped_worker_has_no_answer_but_a_state(host: Host) -> None:
    host.launch(worker("rank_0"))
    host.wait_file("ranks/rank_0/stdout.log")
    pid = host.events("process_started")[0]["pid"]

    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the stop")
    one = stacks(host)["rank_0"]
    assert (one["source"], "state T" in one["text"]) == ("proc", True)
    host.do("stop", "--grace", "0")


def test_an_answer_is_waited_for_to_its_end(host: Host) -> None:
    """One that comes in two parts, as from a worker that has to wait for a processor."""
    slow = """
import os, signal, time
log = open("ranks/rank_0/stacks.log", "a")
def answer(*_):
    print("in the", file=log, flush=True)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    print("middle", file=log, flush=True)
signal.signal(signal.SIGUSR1, answer)
print("up", flush=True)
time.sleep(600)
"""
    host.launch([sys.executable, "-c", slow])
    host.wait_file("ranks/rank_0/stdout.log")
    one = stacks(host)["rank_0"]
    assert (one["source"], one["text"]) == ("faulthandler", "in the\nmiddle\n")
    host.do("stop", "--grace", "0")


def test_a_run_that_has_ended_has_no_stacks(host: Host) -> None:
    host.launch(sh("true"))
    host.wait_finished()
    assert host.do("stacks") == {"stacks": []}
