"""Surveys as the hosts of a healthy cluster would give them, to be changed by tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Mapping, Optional, Sequence

from orchestrator.inventory import Host, ServerId, SshAddress
from orchestrator.planning.facts import HostFacts, WorkdirFacts
from orchestrator.preflight.needs import Needs
from orchestrator.preflight.report import Answer, Clock, HostReport
from orchestrator.preflight.survey import Exchange, Survey
from orchestrator.preflight.tools import Unanswered, device_of, parse
from tests.cluster.preflight import ascend

EIGHT = tuple(range(8))


def host(number: int, devices: Sequence[int] = EIGHT, target: str = "Ascend") -> Host:
    return Host(
        name=f"node{number}",
        address=SshAddress(f"192.168.0.{number}"),
        server_id=ServerId(f"192.168.0.{number}"),
        devices=tuple(devices),
        device_target=target,
        workdir="/data/glm2",
        python="/usr/bin/python3",
    )


def ip(number: int, device: int) -> str:
    return f"10.{device % 4 + 1}.{device // 4}.{number}"


def outputs(number: int, devices: Sequence[int] = EIGHT) -> Dict[str, str]:
    """What the tools of a healthy host print, by command."""
    said = {"npu-smi info": ascend.npu_table(devices)}
    for device in devices:
        said[f"npu-smi info -t health -i {device}"] = ascend.health()
        said[f"npu-smi info -t ecc -i {device}"] = ascend.ecc()
        nic = f"hccn_tool -i {device}"
        said[f"{nic} -ip -g"] = f"ipaddr:{ip(number, device)}\nnetmask:255.255.0.0"
        said[f"{nic} -link -g"] = "link status: UP"
        said[f"{nic} -net_health -g"] = "net health status: Success"
        said[f"{nic} -gateway -g"] = "default gateway:10.1.0.1, Iface:eth0"
        said[f"{nic} -netdetect -g"] = "netdetect address: 10.1.0.1"
        said[f"{nic} -tls -g"] = ascend.tls(device, on=False)
    return said


def answer(command: str, text: Optional[str]) -> Answer:
    """``text`` None: the tool did not answer."""
    argv = tuple(command.split())
    device = device_of(argv).get("device")
    if text is None:
        return Answer(argv, device, Unanswered(command, "no answer within 15 s"))
    return Answer(argv, device, parse(argv, text))


def report(number: int, changed: Mapping[str, Optional[str]] = {}, **facts: Any) -> HostReport:
    """A healthy host's report, with some outputs and facts changed."""
    said: Dict[str, Optional[str]] = {**outputs(number), **changed}
    healthy = HostFacts(
        hostname=f"node{number}",
        python="3.9.18",
        mindspore="2.2.0",
        cann="7.0.RC1",
        driver="23.0.7",
        firmware="7.1.0",
        device_ips={device: ip(number, device) for device in EIGHT},
        workdir=WorkdirFacts("/data/glm2", True, True, None, 200 << 30),
    )
    return HostReport(
        facts=replace(healthy, **facts),
        clock=Clock(100.0, 5.0, 6.0),
        answers=tuple(answer(command, text) for command, text in said.items()),
        shm_free_bytes=16 << 30,
        open_files=65536,
        code="c0de",
    )


def survey(*reports: HostReport) -> Survey:
    hosts = tuple(host(number) for number in range(1, len(reports) + 1))
    return Survey(
        hosts=hosts,
        needs=Needs(mindspore=True, files=(), ports={}),
        reports={host.name: report for host, report in zip(hosts, reports)},
        exchanges={host.name: Exchange(100.0, 101.2, r.clock) for host, r in zip(hosts, reports)},
    )
