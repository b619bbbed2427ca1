"""How each fault is made to happen, and what an operator does about it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Optional

from orchestrator.drill.processes import DrillTimeout, wait_until
from orchestrator.drill.scene import RUN_ID, Done, Scene
from orchestrator.errors import HostNotReady

VICTIM = 2
_EI0006 = """\
[ERROR] HCCL(4021,python3.9):{stamp} [task_exception_handler.cc:842] Getting socket times out.
EI0006: {stamp} Getting socket times out. Reason: the remote rank has not connected within 120 s
        Possible Cause: 1. An exception occurs during the execution on some NPUs in the cluster. \
As a result, collective communication operation failed. 2. The connection is abnormal.
        Solution: 1. Check whether the error is reported on other ranks with other error codes. \
2. Check that the timeout interval is properly set.
"""
_EJ0001 = """\
EJ0001: {stamp} Failed to initialize the HCCP process. Reason: Maybe the last training process is \
running.
        Solution: Wait for 10s after killing the last training process and try again.
"""
_EI0003 = """\
EI0003: {stamp} In [HcclAllReduce], value [0] for parameter [count] is invalid.
"""


# Ranks


def kill_rank(scene: Scene) -> None:
    scene.rank(VICTIM).send(signal.SIGKILL)


def crash_rank(scene: Scene) -> None:
    scene.rank(VICTIM).send(signal.SIGSEGV)


def raise_in_rank(scene: Scene) -> None:
    scene.trick("raise", VICTIM)


def hang_rank(scene: Scene) -> None:
    scene.rank(VICTIM).send(signal.SIGSTOP)


def slow_rank(scene: Scene) -> None:
    scene.trick("slow", VICTIM)


def nan_loss(scene: Scene) -> None:
    scene.trick("nan", VICTIM)


def storm(scene: Scene) -> None:
    _complain(scene)
    scene.trick("say-and-exit", VICTIM, _EJ0001.format(stamp=_stamp()))


def silent_exit(scene: Scene) -> None:
    _complain(scene)
    scene.trick("exit", VICTIM)


def break_two(scene: Scene) -> None:
    scene.trick("say", 0, _EJ0001.format(stamp=_stamp()))
    wait_until(lambda: "EJ0001" in _log(scene, 0), "the first rank's error")
    scene.trick("say-and-exit", VICTIM, _EI0003.format(stamp=_stamp(_BEHIND_S)))
    scene.let("leave")  # both end by themselves, at about the same time


def kill_beside_deaf(scene: Scene) -> None:
    scene.trick("deaf", VICTIM + 1)
    wait_until(lambda: ignores_term(scene.rank(VICTIM + 1).pid), "a rank that ignores SIGTERM")
    kill_rank(scene)


def kill_beside_fork(scene: Scene) -> None:
    scene.trick("fork", VICTIM + 1)
    note = scene.shared / "tricks" / f"fork.{VICTIM + 1}.pid"
    wait_until(lambda: note.exists() and note.read_text().strip(), "the helper")
    kill_rank(scene)


# Supervisors, controllers, runs


def kill_supervisor(scene: Scene) -> None:
    scene.supervisor(scene.host_of(VICTIM)).send(signal.SIGKILL)


def kill_controller(scene: Scene) -> None:
    assert scene.launched is not None
    scene.launched.kill()
    scene.launched = None


def attach(scene: Scene) -> Optional[Done]:
    return scene.command("attach", RUN_ID, "-o", "json").wait()


def second_launch(scene: Scene) -> None:
    """Before the launch, the other run is there first; later, it comes and is refused."""
    if scene.launched is None:
        elsewhere = scene.folder / "other"
        (elsewhere / "tricks").mkdir(parents=True)
        other = scene.launch("other", elsewhere)
        scene.notes["other"] = other
        journal = scene.paths.dir.parent / "other" / "journal.jsonl"
        wait_until(
            lambda: other.over or (journal.exists() and '"running"' in journal.read_text("utf-8")),
            "the other run",
            60.0,
        )
    else:
        scene.notes["refused"] = scene.launch("other").wait()


def intruder(scene: Scene) -> str:
    """What became of the other run."""
    refused = scene.notes.get("refused")
    if refused is not None:
        return "" if refused.status == 9 else f"the other run got {refused.status}"
    stopped = scene.command("stop", "other").wait()
    scene.notes["other"].kill()
    return "busy 127.0.1.1" if stopped.status == 0 else f"stop ended with {stopped.status}"


# Networks and keys


def cut_network(scene: Scene) -> None:
    scene.cluster.server(scene.host_of(VICTIM)).stop()


def mend_network(scene: Scene) -> Optional[Done]:
    scene.cluster.start(scene.host_of(VICTIM))
    return _stop(scene)


def freeze_network(scene: Scene) -> None:
    scene.cluster.server(scene.host_of(VICTIM)).freeze()


def thaw_network(scene: Scene) -> Optional[Done]:
    scene.cluster.server(scene.host_of(VICTIM)).thaw()
    return _stop(scene)


def short_cut(scene: Scene) -> None:
    scene.cluster.server(scene.host_of(VICTIM)).cut()


def lost_lines(scene: Scene) -> str:
    """Whether the controller's copies of logs and metrics are those of the hosts."""
    for rank in scene.ranks:
        there = scene.run_dir(scene.host_of(rank)) / "ranks" / f"rank_{rank}"
        pairs = (
            (scene.paths.log(f"rank_{rank}"), there / "stdout.log"),
            (scene.paths.metrics(f"rank_{rank}"), there / "metrics.jsonl"),
        )
        for copy, original in pairs:
            if copy.read_bytes() != original.read_bytes():
                return f"{copy.name} differs"
    return ""


def change_key(scene: Scene) -> None:
    server = scene.cluster.server(scene.host_of(VICTIM))
    server.stop()
    scene.notes["key"] = server.new_key()
    scene.cluster.start(scene.host_of(VICTIM))


def trust_key(scene: Scene) -> Optional[Done]:
    address = f"[{scene.host_of(VICTIM).address}]"
    lines = scene.cluster.known_hosts.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(address)]
    scene.cluster.known_hosts.write_text("".join([*kept, scene.notes["key"]]))
    return _stop(scene)


# Disks, Pythons, clocks


def no_mounts() -> str:
    return "" if os.geteuid() == 0 else "only root can mount a small disk"


def small_disk(scene: Scene) -> None:
    folder = Path(scene.host_of(VICTIM).workdir)
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64g", "drill", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise HostNotReady(f"cannot mount a small disk: {mounted.stderr.strip()}")
    scene.unmount.append(folder)


def fill_disk(scene: Scene) -> None:
    """All but room for a few lines of log: the disk shrinks to what is used."""
    folder = scene.host_of(VICTIM).workdir
    used = os.statvfs(folder)
    size = (used.f_blocks - used.f_bfree) * used.f_frsize + 24 * 1024
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def damage_checkpoint(scene: Scene) -> None:
    """Of the newest complete step."""
    step = max(scene.complete_steps())
    folder = scene.run_dir(scene.host_of(VICTIM)) / "output" / "checkpoint" / f"rank_{VICTIM}"
    (path,) = folder.glob(f"*_{step}.ckpt")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    scene.notes["damaged"] = step


def collects_damage(scene: Scene) -> str:
    """A damaged step must be refused by name, and the next older or newer one be had."""
    step = scene.notes["damaged"]
    out = scene.folder / "damaged"
    done = scene.command(
        "collect-ckpt", RUN_ID, "--step", step, "--out", out, "--merge", "-o", "json"
    ).wait()
    named = f"rank_{VICTIM}" in done.talk or f"rank {VICTIM}" in done.talk
    return "" if done.status == 10 and named else f"collect of step {step} got {done.status}"


def remove_python(scene: Scene) -> None:
    tool = Path(scene.host_of(VICTIM).python)
    tool.rename(tool.with_name("gone"))


def bring_python_back(scene: Scene) -> Optional[Done]:
    tool = Path(scene.host_of(VICTIM).python)
    tool.with_name("gone").rename(tool)
    return _stop(scene)


_BEHIND_S = 600.0


def slow_clock(scene: Scene) -> None:
    """The host's Pythons, the supervisor's too, have a clock of their own."""
    folder = scene.folder / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import time\n_true = time.time\ntime.time = lambda: _true() - {_BEHIND_S}\n"
    )
    scene.use_python(VICTIM, str(folder))
    scene.options = ("--skip-preflight",)  # which would refuse such clocks


def straggler(scene: Scene) -> str:
    """The rank that was told of as slow."""
    wait_until(
        lambda: any(one["rule"] == "straggler" for one in scene.decisions()), "a straggler", 90.0
    )
    evidence = next(one["evidence"] for one in scene.decisions() if one["rule"] == "straggler")
    return f"straggler {evidence['kind']} {evidence['name']}"


def _complain(scene: Scene) -> None:
    """All but the victim, and then they wait."""
    for rank in _others(scene):
        scene.trick("say", rank, _EI0006.format(stamp=_stamp()) * 20)
    wait_until(lambda: all("EI0006" in _log(scene, rank) for rank in _others(scene)), "the storm")


def _others(scene: Scene) -> list[int]:
    return [rank for rank in scene.ranks if rank != VICTIM]


def _log(scene: Scene, rank: int) -> str:
    folder = scene.run_dir(scene.host_of(rank)) / "ranks" / f"rank_{rank}"
    return (folder / "stdout.log").read_text("utf-8", "replace")


def _stop(scene: Scene) -> Optional[Done]:
    """As an operator does when the host is back: it must prove that nothing is left."""
    if not (scene.paths.dir / "plan.json").exists():
        return None
    done = scene.command("stop", RUN_ID, "-o", "json").wait()
    if done.status:
        raise DrillTimeout(f"stop ended with {done.status}: {done.talk.strip()}")
    return None


def _stamp(behind_s: float = 0.0) -> str:
    now = time.time() - behind_s
    return (
        time.strftime("%Y-%m-%d-%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}.000"
    )


def ignores_term(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)))
    return False
