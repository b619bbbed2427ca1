"""collect-ckpt as a user runs it, from real ssh servers: both engines, options, and killed at any
moment."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from orchestrator.checkpoints.merge import merge
from tests.cluster.recorded import RUN_ID, record_run, run_dir
from tests.cluster.sshd import Loopback, wait_until
from tests.unit.checkpoints.sets import split, whole, write_set

MODEL = {f"w{i}": whole("Float32", (256, 512), i) for i in range(24)}
LAYOUTS = {
    name: split((4,), 0, -1) if i % 2 else split((4,), -1, 0) for i, name in enumerate(MODEL)
}
RANKS = 4


class Run:
    """A run on two hosts of two ranks each, and the command to collect it."""

    def __init__(self, cluster: Loopback, root: Path) -> None:
        self.cluster = cluster
        self.home = root / "home"
        self.out = root / "out"
        record_run(self.home, cluster.hosts, 2)
        made = write_set(root / "all", MODEL, [LAYOUTS])
        self.expected = merge(
            made.shards, made.strategy, root / "expected.ckpt"
        ).output.read_bytes()
        self.files: Dict[str, bytes] = {}
        for rank in range(RANKS):
            output = run_dir(cluster.hosts[rank // 2]) / "output"
            path = output / "checkpoint" / f"rank_{rank}" / made.file(rank).name
            path.parent.mkdir(parents=True)
            made.file(rank).replace(path)
            self.files[f"rank_{rank}/{path.name}"] = path.read_bytes()
            (output / "strategy").mkdir(exist_ok=True)
            strategy = made.strategy / f"ckpt_strategy_rank_{rank}.ckpt"
            strategy.replace(output / "strategy" / strategy.name)

    def argv(self, *arguments: object) -> List[str]:
        return [
            sys.executable,
            *("-m", "orchestrator.cli.main", "collect-ckpt", RUN_ID, "--out", str(self.out)),
            *map(str, arguments),
        ]

    @property
    def environment(self) -> Dict[str, str]:
        return {**os.environ, "GLM2_ORCH_HOME": str(self.home)}

    def collect(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def kill_when(self, condition: Callable[[], bool], *arguments: object) -> bool:
        """Start the command and kill it as soon as ``condition()`` holds; False when it had ended
        before."""
        process = subprocess.Popen(
            self.argv(*arguments),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: condition() or process.poll() is not None, "the moment to kill", 60.0
            )
        finally:
            process.kill()
        return process.wait() == -9

    def arrived(self) -> int:
        """Bytes on their way."""
        total = 0
        for path in self.out.glob(".incoming/*/*.part"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def check_collected(self) -> None:
        found = {
            str(path.relative_to(self.out / "checkpoint")): path.read_bytes()
            for path in (self.out / "checkpoint").glob("*/*")
        }
        assert found == self.files
        assert json.loads((self.out / "COMPLETE").read_text())["steps"] == ["1_4"]
        assert not (self.out / ".incoming").exists()


@pytest.fixture
def run(loopback: Callable[..., Loopback], tmp_path: Path) -> Run:
    return Run(loopback(2), tmp_path)


@pytest.mark.parametrize("transfer", ["ssh", "paramiko", "auto"])
def test_each_engine_collects_and_merges(run: Run, transfer: str) -> None:
    done = run.collect("--transfer", transfer, "--merge", "--output", "json")
    assert done.returncode == 0, done.stderr
    record: Dict[str, Any] = json.loads(done.stdout)
    assert (record["step"], record["ranks"], record["fetched"]) == ("1_4", [0, 1, 2, 3], 4)
    assert Path(record["merged"]).read_bytes() == run.expected
    assert "4 files of 4 ranks" in done.stderr
    run.check_collected()


def test_a_host_that_ssh_cannot_reach_is_reached_by_paramiko(run: Run, tmp_path: Path) -> None:
    run.cluster.key.chmod(0o644)  # the system's ssh ignores such a key
    done = run.collect()
    assert done.returncode == 0, done.stderr
    assert "trying without the system's ssh" in done.stderr
    run.check_collected()
    assert run.collect("--transfer", "ssh", "--out", tmp_path / "again").returncode == 5


@pytest.mark.parametrize("transfer", ["ssh", "paramiko"])
def test_a_merge_on_the_way(run: Run, transfer: str) -> None:
    done = run.collect("--merge", "--stream", "--transfer", transfer)
    assert done.returncode == 0, done.stderr
    assert (run.out / "merged.ckpt").read_bytes() == run.expected
    assert {p.name for p in run.out.iterdir()} == {"merged.ckpt", "merged.ckpt.manifest.json"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stream"], "--stream is a way to merge"),
        (["--merge", "--stream", "--keep", "2"], "--stream keeps no shards"),
        (["--no-optimizer"], "--no-optimizer is about the merged file"),
        (["--bwlimit", "fast"], "'fast' is no size"),
        (["--keep", "0"], "Invalid value for '--keep'"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: List[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", "collect-ckpt", *arguments],
        env={**os.environ, "GLM2_ORCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_killed_at_any_moment_and_repeated(run: Run) -> None:
    total = sum(map(len, run.files.values()))
    chance = random.Random(6)
    moments: List[Callable[[], bool]] = [
        lambda: run.out.exists(),
        lambda: (run.out / ".incoming").exists(),
        *(
            lambda least=total * fraction: run.arrived() >= least  # type: ignore[misc]
            for fraction in sorted(chance.random() for _ in range(4))
        ),
        lambda: (run.out / "strategy").exists(),
        lambda: (run.out / "checkpoint").exists(),
        lambda: (run.out / "manifest.json").exists(),
    ]
    killed = 0
    for moment in moments:
        # Slow enough to be caught in the middle.
        killed += run.kill_when(moment, "--bwlimit", "12M")
        for path in (run.out / "checkpoint").glob("*/*"):
            assert path.read_bytes() == run.files[f"{path.parent.name}/{path.name}"]
    assert killed >= 4
    done = run.collect()
    assert done.returncode == 0, done.stderr
    run.check_collected()


def test_a_merge_on_the_way_killed_at_any_moment_and_repeated(run: Run) -> None:
    journal = run.out / ".merged.ckpt.stream.journal"

    def lines() -> int:
        with contextlib.suppress(FileNotFoundError):
            return len(journal.read_text().splitlines())
        return 0

    moments: List[Callable[[], bool]] = [
        lambda: run.out.exists(),
        lambda: (run.out / ".merged.ckpt.outline").exists(),
        lambda: (run.out / ".merged.ckpt.stream").exists(),
        lambda: lines() >= 1,
        lambda: lines() >= 2,
        lambda: lines() >= 4,
        lambda: (run.out / "merged.ckpt").exists(),
    ]
    killed = 0
    for moment in moments:
        killed += run.kill_when(moment, "--bwlimit", "12M", "--merge", "--stream")
        if (run.out / "merged.ckpt").exists():
            assert (run.out / "merged.ckpt").read_bytes() == run.expected
    assert killed >= 4
    done = run.collect("--merge", "--stream")
    assert done.returncode == 0, done.stderr
    assert (run.out / "merged.ckpt").read_bytes() == run.expected
    assert {p.name for p in run.out.iterdir()} == {"merged.ckpt", "merged.ckpt.manifest.json"}
