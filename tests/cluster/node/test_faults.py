"""The supervisor among hung, hostile and full surroundings, with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest

from tests.cluster.node.host import Host, alive, marked, sh, wait_until

FOREVER = sh("exec sleep 600")


def test_the_caller_of_stop_survives_with_the_environment_of_a_rank(host: Host) -> None:
    host.launch(FOREVER)
    stop = " ".join(host.argv("stop"))
    done = subprocess.run(
        ["bash", "-c", f"{stop}; echo survived"],
        env=marked(host),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    certificate, survived = done.stdout.splitlines()
    assert json.loads(certificate)["clean"] is True
    assert survived == "survived"


def test_hosts_that_share_a_machine_do_not_end_each_other(new_host: Callable[..., Host]) -> None:
    one = new_host(workdir="one", run_id="shared-run")
    two = new_host(workdir="two", run_id="shared-run")
    one.launch(FOREVER)
    two.launch(FOREVER)
    (started,) = two.events("process_started")
    assert one.do("stop")["clean"] is True
    assert one.do("sweep")["swept"] == 0
    assert alive(started["pid"])
    assert two.do("status")["state"] == "running"
    two.do("stop")


def test_stop_ends_a_hung_supervisor(host: Host) -> None:
    host.launch(sh("trap 'echo saved; exit 143' TERM; echo up; while :; do sleep 0.02; done"))
    host.wait_file("ranks/rank_0/stdout.log")
    os.kill(host.pids[0], signal.SIGSTOP)
    certificate = host.do("stop")
    assert (certificate["clean"], certificate["state"]) == (True, "lost")
    assert host.stdout("rank_0") == b"up\nsaved\n"


def test_a_stopped_rank_gets_its_sigterm(host: Host) -> None:
    host.launch(sh("trap 'exit 9' TERM; kill -STOP $$; while :; do sleep 0.02; done"), grace_s=600)
    (started,) = host.events("process_started")
    process = psutil.Process(started["pid"])
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the rank to stop")
    assert host.do("stop")["clean"] is True
    assert host.exits() == {"rank_0": (9, True)}


def test_a_pid_of_somebody_else_is_never_signalled(host: Host) -> None:
    """The journal names a supervisor whose pid now belongs to another process: us."""
    host.ship(FOREVER)
    armed = {
        "seq": 1,
        "event": "armed",
        "pid": os.getpid(),
        "start_ticks": 1,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }
    (host.run_dir / "journal.jsonl").write_text(json.dumps(armed) + "\n")
    assert host.do("status")["state"] == "lost"
    assert host.do("stop")["clean"] is True


def test_a_half_written_journal_and_heartbeat_are_read(host: Host) -> None:
    host.launch(FOREVER)
    host.do("stop")
    with (host.run_dir / "journal.jsonl").open("a") as file:
        file.write('{"seq":99,"event":"fini')
    (host.run_dir / "heartbeat.json").write_text('{"schema":1,')
    status = host.do("status")
    assert (status["state"], status["heartbeat"]) == ("finished", None)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"schema": 2}, "schema"),
        ({"workdir": "relative"}, "workdir"),
        ({"grace_s": "soon"}, "grace_s"),
        ({"leases": ["../device_0"]}, "leases"),
        ({"processes": []}, "processes"),
    ],
)
def test_a_wrong_spec_is_named(host: Host, settings: Any, field: str) -> None:
    host.ship(FOREVER, **settings)
    code, answer = host.ask("arm")
    assert (code, answer["error"]["code"]) == (3, "spec")
    assert f"spec.json: {field}: " in answer["error"]["message"]
    assert not (host.run_dir / "journal.jsonl").exists()


def test_no_spec(host: Host) -> None:
    host.ship(FOREVER)
    (host.run_dir / "spec.json").unlink()
    assert host.ask("arm")[0] == 3
    status = host.do("status")
    assert (status["state"], status["processes"]) == ("absent", [])
    assert host.do("stop")["clean"] is True


@pytest.mark.parametrize("name", ["supervisor.lock", "journal.jsonl", "control.sock"])
def test_a_folder_that_cannot_be_used(host: Host, name: str) -> None:
    host.ship(FOREVER)
    (host.run_dir / name).mkdir()
    code, answer = host.ask("arm")
    assert (code, answer["error"]["code"]) == (4, "host-not-ready")
    assert str(host.run_dir) in answer["error"]["message"]
    (host.run_dir / name).rmdir()
    host.do("arm")  # nothing was kept
    host.do("stop")


@pytest.mark.parametrize(
    "options",
    [["fly"], ["stop", "--grace", "-1"], ["stream", "--offsets", "[]"], ["arm", "--rank", "1"], []],
)
def test_a_wrong_command_line_is_answered_in_json(host: Host, options: Any) -> None:
    host.ship(FOREVER)
    program = str(host.run_dir / "node" / "supervisor.py")
    done = subprocess.run(
        [sys.executable, program, *options, "--run-dir", str(host.run_dir)],
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage"


def test_a_stranger_on_the_control_socket_disturbs_nobody(host: Host) -> None:
    host.launch(FOREVER)
    for message in (b"", b"\n", b"garbage\n", b"[1]\n", b'{"command":"fly"}\n', b"x" * 200_000):
        with socket.socket(socket.AF_UNIX) as connection:
            descriptor = os.open(host.run_dir, os.O_RDONLY)
            try:
                connection.connect(f"/proc/self/fd/{descriptor}/control.sock")
                connection.sendall(message)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(4096)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it need not listen to the end
            finally:
                os.close(descriptor)
    assert host.do("status")["state"] == "running"
    assert host.do("stop", "--grace", "1")["clean"] is True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "work"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.getuid() != 0 or subprocess.run(["mount", *options], check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill(path: Path, host: Host) -> None:
    """Until there is no room left on the disk of ``path`` and the supervisor has found that: until
    then it may be about to give back the block of its last heartbeat."""
    with path.open("wb", buffering=0) as file:

        def full() -> bool:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)
            beat = host.do("status")["heartbeat"]
            return bool(beat and "heartbeat.json" in beat["problem"])

        wait_until(full, "a heartbeat without room")
    assert os.statvfs(path.parent).f_bavail == 0


def test_a_full_disk_ends_nothing_and_hides_nothing(
    host: Host, small_disk: Path, tmp_path: Path
) -> None:
    """More events than the journal's last block holds; what is missing comes when there is room."""
    go = tmp_path / "go"
    host.launch(sh(f"while [ ! -e {go} ]; do sleep 0.02; done; exit 3"), *[FOREVER] * 24)
    filler = small_disk / "filler"
    fill(filler, host)
    go.touch()

    def full() -> bool:
        beat = host.do("status")["heartbeat"]
        return bool(beat and beat["outcome"] == "failed" and "journal" in beat["problem"])

    wait_until(full, "a heartbeat that says the disk is full")
    assert not (host.run_dir / "ranks" / "rank_0" / "exit.json").exists()
    assert host.do("status")["outcome"] == "failed"
    filler.unlink()
    finished = host.wait_finished()
    assert (finished["outcome"], finished["failed"]) == ("failed", ["rank_0"])
    expected = {f"rank_{i}": (143, True) for i in range(1, 25)}
    assert host.exits() == dict(expected, rank_0=(3, False))
