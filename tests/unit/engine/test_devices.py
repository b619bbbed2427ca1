"""The use of devices: what hosts with, without and with an odd npu-smi say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from orchestrator.engine.devices import NO_TOOL, device_tables
from orchestrator.errors import HostUnreachable
from orchestrator.preflight.npu_smi import NpuTable
from orchestrator.transport.base import Completed
from tests.unit.preflight.outputs import BUSY_910B


@dataclass
class Host:
    name: str
    answer: Optional[Completed]

    def run(self, argv, *, stdin=b"", timeout=None):
        assert list(argv) == ["npu-smi", "info"]
        assert timeout is not None
        if self.answer is None:
            raise HostUnreachable("no route", host=self.name)
        return self.answer


def test_every_host_says_what_it_can():
    hosts = {
        "good": Completed(0, BUSY_910B.encode(), b""),
        "without": Completed(127, b"", b"not found"),
        "odd": Completed(0, b"\xff hello", b""),
        "away": None,
    }
    found = device_tables({name: Host(name, answer) for name, answer in hosts.items()})  # type: ignore[arg-type]
    good = found["good"]
    assert isinstance(good, NpuTable)
    assert [(npu.hbm_used_mb, npu.celsius, npu.busy_percent) for npu in good.npus] == [
        (51711, 40, 0), (3402, 51, 0),
    ]  # fmt: skip
    assert found["without"] == NO_TOOL
    assert found["odd"] == "npu-smi gives no table of devices"
    assert found["away"] == "away: no route"
