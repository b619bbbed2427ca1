"""Reading /proc and deciding who belongs to whom."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.node import processes
from orchestrator.node.processes import Process


def stat(name: bytes, pid: int = 42, ppid: int = 7, ticks: int = 123456) -> bytes:
    middle = b" ".join(b"0" for _ in range(17))
    return b"%d (%s) S %d %s %d 999 0\n" % (pid, name, ppid, middle, ticks)


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name))
def test_a_name_cannot_shift_the_fields(name: bytes) -> None:
    process = processes.parse_stat(stat(name))
    assert (process.pid, process.ppid, process.start_ticks, process.state) == (42, 7, 123456, "S")
    assert process.name == name.decode("utf-8", "replace")


def test_hostile_names() -> None:
    for name in (b"a) S 1 (b", b") Z 1", b"((", b" ", b"x\ny"):
        assert processes.parse_stat(stat(name)).ppid == 7


def table(parents: Dict[int, int]) -> processes.Table:
    return {pid: Process(pid, ppid, 1, "S", "p") for pid, ppid in parents.items()}


TREE = table({1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20})


def test_descendants_and_ancestors() -> None:
    assert processes.descendants([10], TREE) == {11, 12}
    assert processes.descendants([11, 20], TREE) == {12, 21}
    assert processes.descendants([99], TREE) == set()
    assert processes.ancestors(12, TREE) == {12, 11, 10, 1}
    assert processes.ancestors(99, TREE) == set()


def test_tops_spare_the_helpers_of_the_living() -> None:
    found = [TREE[pid] for pid in (10, 11, 12, 21)]
    assert [process.pid for process in processes.tops(found)] == [10, 21]


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 30), max_size=30))
def test_any_table_is_walked_to_its_end(parents: Dict[int, int]) -> None:
    """Read one by one while processes come and go, a table may hold anything, even circles."""
    found = table(parents)
    for pid in parents:
        below = processes.descendants([pid], found)
        assert all(parents[child] in below | {pid} for child in below)
        assert pid in processes.ancestors(pid, found)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GLM2_RUN_ID": "r1", "GLM2_RUN_DIR": "{dir}"}, True),
        ({"GLM2_RUN_ID": "r1", "GLM2_RUN_DIR": "{link}"}, True),
        ({"GLM2_RUN_ID": "r1", "GLM2_RUN_DIR": "/elsewhere"}, False),
        ({"GLM2_RUN_ID": "r10", "GLM2_RUN_DIR": "{dir}"}, False),
        ({"GLM2_RUN_ID": "r1"}, False),
        ({"GLM2_RUN_DIR": "{dir}"}, False),
        ({"X": "GLM2_RUN_ID=r1", "GLM2_RUN_DIR": "{dir}"}, False),
    ],
)
def test_whose_process(tmp_path, environ: Dict[str, str], expected: bool) -> None:
    folder, link = tmp_path / "r1", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    marks = {name: value.format(dir=folder, link=link) for name, value in environ.items()}
    child = subprocess.Popen(
        ["cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**marks, "PATH": os.environ["PATH"]},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"up\n")
    child.stdin.flush()
    assert child.stdout.readline() == b"up\n"  # in the midst of exec it has no environment
    try:
        assert processes.carries(child.pid, "r1", str(folder)) is expected
        found = processes.members("r1", str(folder))
        assert [process.pid for process in found] == ([child.pid] if expected else [])
        assert processes.members("r1", str(folder), spare={child.pid}) == []
    finally:
        child.communicate()
    assert not processes.carries(child.pid, "r1", str(folder))


def test_a_process_that_is_in_the_midst_of_exec_is_found(tmp_path) -> None:
    """This one always is, or nearly."""
    program = tmp_path / "again"
    program.write_text('#!/bin/sh\nexec "$0"\n')
    program.chmod(0o755)
    child = subprocess.Popen(
        [program], env={"GLM2_RUN_ID": "r1", "GLM2_RUN_DIR": str(tmp_path), "PATH": "/bin"}
    )
    try:
        looks = [processes.members("r1", str(tmp_path)) for _ in range(200)]
    finally:
        child.kill()
        child.wait()
    assert {tuple(one.pid for one in found) for found in looks} == {(child.pid,)}


def test_an_exec_that_takes_long_is_waited_for(monkeypatch) -> None:
    """As from a disk that is slow to answer."""
    marked = {"environ": b"GLM2_RUN_ID=r1\0GLM2_RUN_DIR=/r1\0", "cmdline": b"python3\0"}
    reads = iter(range(10_000))

    def contents(pid: int, name: str) -> bytes:
        if name == "stat":
            return stat(b"python3", pid)
        return marked[name] if next(reads) > 40 else b""

    monkeypatch.setattr(processes, "_contents", contents)
    assert processes.carries(42, "r1", "/r1")


def test_what_has_no_environment_is_not_waited_for(monkeypatch) -> None:
    """Neither a thread of the kernel nor a zombie will ever have one, and ``env -i`` is no exec."""
    monkeypatch.setattr(processes.time, "sleep", lambda _: pytest.fail("it was waited for"))
    bare = subprocess.Popen(["cat"], env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write(b"up\n")
    bare.stdin.flush()
    assert bare.stdout.readline() == b"up\n"
    dead = subprocess.Popen(["true"], env={})
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert processes.marks(bare.pid, patient=True) is None
        assert processes.marks(dead.pid, patient=True) is None
        for process in processes.table().values():
            if process.ppid == 2:
                assert processes.marks(process.pid, patient=True) is None
    finally:
        bare.communicate()
        dead.wait()


def test_only_the_very_process_is_signalled() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    process = processes.read(child.pid)
    assert process is not None
    somebody_else = Process(process.pid, process.ppid, process.start_ticks - 1, "S", "cat")
    assert not processes.is_alive(somebody_else.pid, somebody_else.start_ticks)
    assert not processes.send(somebody_else, signal.SIGKILL)
    assert child.poll() is None
    assert processes.send(process, signal.SIGKILL)
    # Until we wait for it, it is a zombie: it has ended.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.is_alive(process.pid, process.start_ticks)
    assert not processes.send(process, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert processes.read(child.pid) is None


def test_signal_names() -> None:
    assert processes.signal_name(signal.SIGKILL) == "SIGKILL"
    assert processes.signal_name(40) == "SIG40"
