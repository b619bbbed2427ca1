"""Parsers of the device tools by cases (command, output, fact). Not run on hardware: the outputs
have the forms of published ones."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.preflight.hccn_tool import (
    Gateway,
    Link,
    NetDetect,
    NetHealth,
    NicAddress,
    Ping,
    TlsSwitch,
)
from orchestrator.preflight.npu_smi import (
    DriverDown,
    EccCounts,
    Npu,
    NpuHealth,
    NpuProcess,
    NpuTable,
)
from orchestrator.preflight.outputs import NotSet
from orchestrator.preflight.tools import NotUnderstood, device_of, parse
from tests.unit.preflight.outputs import A3, BUSY_910B, CONTAINER, ECC, IDLE, PING, TLS

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("GLM2_SHARED", str(ROOT.parent / "shared")))

INFO = "npu-smi info"
HEALTH, ECC_OF = "npu-smi info -t health -i 3", "npu-smi info -t ecc -i 3"
IP, LINK = "hccn_tool -i 3 -ip -g", "hccn_tool -i 3 -link -g"
NET_HEALTH, TLS_OF = "hccn_tool -i 3 -net_health -g", "hccn_tool -i 3 -tls -g"
GATEWAY, NETDETECT = "hccn_tool -i 3 -gateway -g", "hccn_tool -i 3 -netdetect -g"
PING_OF = "hccn_tool -i 3 -ping -g address 10.10.100.10"

FACTS = [
    (
        INFO,
        IDLE,
        NpuTable(
            (
                Npu(0, 0, 0, "910ProB", "OK", 0, 32768, 0, 37),
                Npu(3, 3, 0, "910ProB", "OK", 0, 32768, 0, 39),
            ),
            (),
            (0, 3),
        ),
    ),
    (
        INFO,
        BUSY_910B,
        NpuTable(
            (
                Npu(0, 0, 0, "910B3", "OK", 51711, 65536, 0, 40),
                Npu(1, 1, 0, "910B3", "Alarm", 3402, 65536, 0, 51),
            ),
            (NpuProcess(0, 71, "python", 40000), NpuProcess(0, 72, "", 8000)),
            (0, 1),
        ),
    ),
    (
        INFO,
        A3,
        NpuTable(
            (
                Npu(2, 1, 0, "Ascend910", "OK", 3122, 65536, 0, 34),
                Npu(3, 1, 1, "Ascend910", "OK", 2876, 65536, 0, 33),
            ),
            (NpuProcess(3, 900, "python", 100),),
            (2, 3),
        ),
    ),
    (
        INFO,
        CONTAINER,
        NpuTable(
            (Npu(0, 0, 0, "910B4", "OK", 2871, 32768, 0, 32),),
            (NpuProcess(0, 485946, "pytest", 5175), NpuProcess(0, 101, "python", 300)),
            (0,),
        ),
    ),
    (
        INFO,
        "dcmi module initialize failed. ret is -8005",
        DriverDown("dcmi module initialize failed. ret is -8005"),
    ),
    (HEALTH, " Health Status : OK\n Error Code : NA\n Error Information : NA", NpuHealth("OK")),
    (
        HEALTH,
        "\tNPU ID : 3\n\tChip Count : 1\n\n\tHealth Status : Alarm\n\tError Code : 0x80e18402\n"
        "\tError Information : L2: ecc\n\tChip ID : 0",
        NpuHealth("Alarm", "0x80e18402", "L2: ecc"),
    ),
    (
        HEALTH,
        "Health Status : OK\nChip ID : 0\nHealth Status : Warning\nError Code : 81\nChip ID : 1",
        NpuHealth("Warning", "81", ""),
    ),
    (
        ECC_OF,
        ECC,
        EccCounts(
            (("HBM Double Bit Error Count", 1),),
            (
                ("HBM Single Bit Error Count", 3),
                ("HBM Single Bit Aggregate Total Err Cnt", 9),
                ("HBM Double Bit Isolated Pages Count", 2),
            ),
        ),
    ),
    (ECC_OF, "HBM Double Bit Error Count : 0\nChip ID : 0", EccCounts((), ())),
    (
        IP,
        "ipaddr:10.10.0.10\nnetmask:255.255.255.0",
        NicAddress(ip_address("10.10.0.10"), ip_network("10.10.0.0/24")),
    ),
    (IP, "Get ipconf failed, because no ip was preset there!", NotSet()),
    (IP, "ipaddr:0.0.0.0\nnetmask:0.0.0.0", NotSet()),
    (LINK, "link status: UP", Link(True)),
    (LINK, "  link status: DOWN\r\n\n", Link(False)),
    (LINK, "[device 3]link status: UP", Link(True)),
    (LINK, "[devid 3]link status: DOWN", Link(False)),
    (NET_HEALTH, "net health status: Success", NetHealth("Success")),
    (NET_HEALTH, "net health status: Receive timeout", NetHealth("Receive timeout")),
    (
        GATEWAY,
        "default gateway:11.12.165.1, Iface:eth0",
        Gateway(ip_address("11.12.165.1"), "eth0"),
    ),
    (GATEWAY, "Get gateway failed, because no gateway was preset there!", NotSet()),
    (GATEWAY, "default gateway:0.0.0.0, Iface:eth0", NotSet()),
    (GATEWAY, "default gateway:, Iface:", NotSet()),
    (NETDETECT, "netdetect address: 11.12.165.1", NetDetect(ip_address("11.12.165.1"))),
    (NETDETECT, "netdetect address: 0.0.0.0", NotSet()),
    (NETDETECT, "netdetect address:", NotSet()),
    (TLS_OF, TLS, TlsSwitch(False)),
    (TLS_OF, TLS.replace("switch[0]", "switch[1]") + "\ndev_id:0, cert info", TlsSwitch(True)),
    (PING_OF, PING, Ping(3, 2)),
    (
        PING_OF,
        "device 0 PING 10.10.100.10\nrecv time out seq=0\n"
        "3 packets transmitted, 0 received, 100.00% packet loss",
        Ping(3, 0),
    ),
]

NOT_UNDERSTOOD = [
    (INFO, ""),
    (
        INFO,
        IDLE.replace(
            "| 3     910ProB             | OK  ", "...\n| 3     910ProB             | OK  "
        ),
    ),
    (INFO, IDLE + "Segmentation fault"),
    (INFO, IDLE.replace("0    / 32768", "0 of 32768")),
    (INFO, IDLE.replace("| OK            | 73.1", "|               | 73.1")),
    (INFO, "\n".join(IDLE.splitlines()[:7])),  # cut within a device
    (INFO, IDLE.replace("| 3     910ProB", "| 0     910ProB")),  # a device twice
    (INFO, BUSY_910B.replace("| 71            |", "| many          |")),
    (
        INFO,
        BUSY_910B.replace("| 0       0                 | 71 ", "| 7       0                 | 71 "),
    ),
    (INFO, A3.replace("Chip  Phy-ID", "Chip        ")),
    (INFO, "bash: npu-smi: command not found"),
    (HEALTH, "Error Code : NA"),
    (HEALTH, "Health Status :"),
    (HEALTH, "Health Status : OK\nTemperature : 90"),
    (ECC_OF, "Chip ID : 0"),
    (ECC_OF, "HBM Double Bit Error Count : -1"),
    (ECC_OF, "HBM Triple Bit Error Count : 0"),
    (IP, "ipaddr:10.10.0.10"),
    (IP, "ipaddr:10.10.0.1000\nnetmask:255.255.255.0"),
    (IP, "ipaddr:10.10.0.10\nnetmask:255.0.255.0"),
    (LINK, ""),
    (LINK, "link status: up"),
    (LINK, "link status: UP\nlink status: DOWN"),
    (LINK, "Cmd executed successfully!"),
    (NET_HEALTH, "net health status: 0"),
    (GATEWAY, "default gateway:11.12.165.1"),
    (GATEWAY, "default gateway:error, Iface:eth0"),
    (NETDETECT, "netdetect address: none"),
    (TLS_OF, "dev_id:0, tls switch[2](0:disable, 1:enable)"),
    (TLS_OF, f"{TLS}\n{TLS}"),
    (PING_OF, "device 0 PING 10.10.100.10\nrecv seq=0,time=0.067000ms"),
    (PING_OF, "device 0 PING 10.10.100.10\n3 packets transmitted, 4 received, 0.00% packet loss"),
    (PING_OF, "device 0 PING 10.10.100.10\n0 packets transmitted, 0 received, 0.00% packet loss"),
    ("hccn_tool -i 3 -fec -g", "fec mode: rs FEC mode"),
    ("", "anything"),
]


@pytest.mark.parametrize(("command", "output", "fact"), FACTS)
def test_facts(command: str, output: str, fact: object) -> None:
    assert parse(command.split(), output) == fact


@pytest.mark.parametrize(("command", "output"), NOT_UNDERSTOOD)
def test_what_is_not_understood_is_said_with_its_text(command: str, output: str) -> None:
    said = parse(command.split(), output)
    assert isinstance(said, NotUnderstood)
    assert (said.command, said.text) == (command, output)
    assert said.why


def test_a_good_text_of_a_tool_that_failed_counts_for_nothing() -> None:
    assert isinstance(parse(LINK.split(), "link status: UP", 1), NotUnderstood)
    unset = "Get ipconf failed, because no ip was preset there!"
    assert parse(IP.split(), unset, 13) == NotSet()
    assert parse(PING_OF.split(), PING, 1) == Ping(3, 2)


def test_device_of() -> None:
    assert device_of(LINK.split()) == {"device": 3}
    assert device_of(INFO.split()) == {}
    assert device_of(["hccn_tool", "-i"]) == {}


Case = Tuple[str, str, object]
COMMANDS = sorted({command for command, _, _ in FACTS})


@given(st.sampled_from(COMMANDS), st.text())
def test_no_text_is_taken_for_good_by_chance(command: str, text: str) -> None:
    said = parse(command.split(), text)
    assert isinstance(said, (NotUnderstood, NotSet))


@given(st.sampled_from(FACTS), st.data())
def test_a_foreign_line_spoils_any_output(
    case: tuple[str, str, object], data: st.DataObject
) -> None:
    command, output, _ = case
    lines: List[str] = output.splitlines()
    at = data.draw(st.integers(0, len(lines)))
    foreign = data.draw(st.text("abcXYZ019/=!?", min_size=1))
    # After the one line that says that the driver is down nothing else matters.
    if not (command == INFO and "dcmi" in output and at > 0):
        text = "\n".join([*lines[:at], foreign, *lines[at:]])
        assert isinstance(parse(command.split(), text), NotUnderstood)


@given(st.sampled_from(FACTS), st.data())
def test_damaged_outputs_never_raise(case: Case, data: st.DataObject) -> None:
    command, output, _ = case
    start = data.draw(st.integers(0, len(output)))
    end = data.draw(st.integers(start, len(output)))
    middle = data.draw(st.text("|+=: /0123OK\n[]NA.", max_size=8))
    parse(command.split(), output[:start] + middle + output[end:], data.draw(st.integers(0, 255)))


REAL = [
    ("npu_smi_info_910A_idle_8.constructed.txt", INFO, NpuTable),
    ("npu_smi_info_910A_alarm_dev5.constructed.txt", INFO, NpuTable),
    ("npu_smi_info_910A_busy_dev3.constructed.txt", INFO, NpuTable),
    ("npu_smi_info_910B3_busy_real.txt", INFO, NpuTable),
    ("npu_smi_info_doc_excerpt.txt", INFO, NotUnderstood),  # an ellipsis in the middle
    ("npu_smi_info_l.txt", INFO, NotUnderstood),
    ("npu_smi_info_m_plain.txt", INFO, NotUnderstood),
    ("npu_smi_t_health_ok.txt", HEALTH, NpuHealth),
    ("npu_smi_t_ecc.txt", ECC_OF, EccCounts),
    ("npu_smi_t_usages_910A.txt", ECC_OF, NotUnderstood),
    ("hccn_tool_ip_ok.txt", IP, NicAddress),
    ("hccn_tool_ip_not_set.txt", IP, NotSet),
    ("hccn_tool_link_up.txt", LINK, Link),
    ("hccn_tool_link_down.txt", LINK, Link),
    ("hccn_tool_link_stat_device.txt", LINK, NotUnderstood),
    ("hccn_tool_link_stat_devid.txt", LINK, NotUnderstood),
    ("hccn_tool_set_ok.txt", LINK, NotUnderstood),
    ("hccn_tool_net_health_success.txt", NET_HEALTH, NetHealth),
    ("hccn_tool_net_health_init.txt", NET_HEALTH, NetHealth),
    ("hccn_tool_gateway.txt", GATEWAY, Gateway),
    ("hccn_tool_netdetect.txt", NETDETECT, NetDetect),
    ("hccn_tool_tls_off.txt", TLS_OF, TlsSwitch),
    ("hccn_tool_tls_on.constructed.txt", TLS_OF, TlsSwitch),
    ("hccn_tool_ping_ok.txt", PING_OF, Ping),
]


@pytest.mark.parametrize(("name", "command", "kind"), REAL)
def test_published_outputs(name: str, command: str, kind: type) -> None:
    file = SHARED / "fixtures/device_tools" / name
    if not file.exists():
        pytest.skip(f"{file} is not there (GLM2_SHARED)")
    assert isinstance(parse(command.split(), file.read_text("utf-8")), kind)


def test_what_the_published_tables_say() -> None:
    folder = SHARED / "fixtures/device_tools"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (GLM2_SHARED)")

    def table(name: str) -> NpuTable:
        said = parse(INFO.split(), (folder / name).read_text("utf-8"))
        assert isinstance(said, NpuTable)
        return said

    alarm = table("npu_smi_info_910A_alarm_dev5.constructed.txt")
    assert [npu.device for npu in alarm.npus if npu.health != "OK"] == [5]
    busy = table("npu_smi_info_910A_busy_dev3.constructed.txt")
    assert {process.device for process in busy.processes} == {3}
    real = table("npu_smi_info_910B3_busy_real.txt")
    assert [(npu.hbm_used_mb, npu.hbm_total_mb) for npu in real.npus] == [
        *((53202, 65536), (53183, 65536))
    ]
    assert real.processes == (NpuProcess(0, 1282855, "python", 49853),)
    assert real.accounted == (0,)  # the excerpt ends before device 1
