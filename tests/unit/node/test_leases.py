"""Locks that are looked at while they are taken."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from orchestrator.node import holders, leases


def test_whoever_only_looks_is_waited_for(tmp_path, monkeypatch) -> None:
    """However long it takes: a process that looks may have to wait for a processor."""
    path = str(tmp_path / "device_0.lock")
    looking = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    tries = threading.Semaphore(0)
    monkeypatch.setattr(leases.time, "sleep", lambda _: tries.release())
    taken = []
    taker = threading.Thread(target=lambda: taken.append(leases.take(path, {"run_id": "r1"})))
    taker.start()
    for _ in range(100):
        tries.acquire()
    os.close(looking)
    taker.join()
    (lock,) = taken
    assert lock is not None
    assert holders.holder(path) == {"run_id": "r1"}
    lock.release()
    assert holders.holder(path) is None


def test_whoever_has_the_lock_is_not_waited_for(tmp_path, monkeypatch) -> None:
    path = str(tmp_path / "device_0.lock")
    lock = leases.take(path, {"run_id": "r1"})
    assert lock is not None
    monkeypatch.setattr(leases.time, "sleep", lambda _: pytest.fail("it was waited for"))
    assert leases.take(path, {"run_id": "r2"}) is None
    assert holders.holder(path) == {"run_id": "r1"}
    lock.release()
