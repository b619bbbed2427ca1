"""What the devices of the hosts of a run do now, as ``npu-smi info`` there says it."""

from __future__ import annotations

from typing import Dict, Mapping, Union

from orchestrator.engine.hosts import on_each
from orchestrator.preflight.npu_smi import NpuTable
from orchestrator.preflight.tools import parse
from orchestrator.transport.base import Transport

NO_TOOL = "it has no npu-smi"
"""What ``device_tables`` says of a host that need not be asked again."""

_COMMAND = ("npu-smi", "info")
_TIMEOUT_S = 20.0


def device_tables(transports: Mapping[str, Transport]) -> Dict[str, Union[NpuTable, str]]:
    """By host: its table of devices, or why there is none (no npu-smi, unreachable, unreadable).

    Read only and the cheapest command that the tool has; it still takes about a second a host.
    """

    def ask(transport: Transport) -> Union[NpuTable, str]:
        answer = transport.run(_COMMAND, timeout=_TIMEOUT_S)
        if answer.exit_status in (126, 127):
            return NO_TOOL
        fact = parse(_COMMAND, answer.stdout.decode("utf-8", "replace"), answer.exit_status)
        return fact if isinstance(fact, NpuTable) else "npu-smi gives no table of devices"

    outcomes = on_each(transports, "asking for devices", ask)
    return {
        outcome.host: str(outcome.error) if outcome.value is None else outcome.value
        for outcome in outcomes
    }
