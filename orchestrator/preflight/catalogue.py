"""All checks, in the order in which they are reported and documented."""

from __future__ import annotations

from typing import Tuple

from orchestrator.preflight.findings import ASCEND, CLUSTER, HOST, NETWORK, USER, Check

MINIMUM_FREE = 64 << 20
LOW_FREE = 1 << 30
LOW_FREE_ASCEND = 10 << 30
LOW_SHM = 1 << 30
LOW_OPEN_FILES = 4096
HELD_WARN = 0.08
HELD_CRIT = 0.25
SKEW_WARN_S = 1.0
SKEW_CRIT_S = 60.0

REACHABLE = Check(
    "reachable",
    NETWORK,
    "The host answers over SSH.",
    "ssh {host} true; then mend the network, the key or the inventory",
    crit="no connection, key refused, or no answer in time",
)
ANSWERS = Check(
    "answers",
    HOST,
    "The host's Python runs the preflight and its answer is usable.",
    "install Python 3.7 or newer there, or set `python:` in the inventory",
    crit="no Python, or an answer that is not that of the preflight",
)
TOOLS = Check(
    "tools",
    HOST,
    "npu-smi and hccn_tool are there and answer.",
    "ssh {host} ls /usr/local/Ascend/driver/tools /usr/local/sbin; put the tools on the PATH of a "
    "non-interactive login",
    warn="a tool is not found: what it would tell is not checked",
    crit="a tool cannot be run, or does not answer within 15 s",
    target=ASCEND,
)
UNDERSTOOD = Check(
    "tool-output",
    HOST,
    "What the tools print is understood to the last line.",
    "run the command there and read it yourself; report the output as a bug of glm2-orch",
    warn="an output has a form that is not known; what it says counts for nothing",
    target=ASCEND,
)
NPU_PRESENT = Check(
    "npu-present",
    HOST,
    "Every device of the inventory is there and the driver answers.",
    "ssh {host} npu-smi info; reseat or reset the card, or correct `devices:` in the inventory",
    crit="npu-smi does not list the device, or cannot talk to the driver",
    target=ASCEND,
)
NPU_HEALTH = Check(
    "npu-health",
    HOST,
    "Every device is healthy.",
    "ssh {host} npu-smi info -t health -i {device}; look up the error code, reset the device: "
    "npu-smi set -t reset -i {device} -c 0 -m 1",
    warn="health Warning",
    crit="any other health than OK",
    target=ASCEND,
)
NPU_ECC = Check(
    "npu-ecc",
    HOST,
    "The memory of every device has no errors.",
    "ssh {host} npu-smi info -t ecc -i {device}; reset the device, have it replaced if errors "
    "come back",
    warn="corrected errors, or errors in the past",
    crit="errors of two bits",
    target=ASCEND,
)
NPU_PROCESSES = Check(
    "npu-processes",
    USER,
    "No process holds a device.",
    "end the process, after asking its owner",
    crit="a process is on the device",
    target=ASCEND,
)
NPU_MEMORY = Check(
    "npu-memory",
    USER,
    "No device memory is held without a process that is seen (of another container, or left "
    "behind).",
    "ssh {host} npu-smi info; end what holds it in another container, or reset the device: "
    "npu-smi set -t reset -i {device} -c 0 -m 1",
    warn=f"more than {HELD_WARN:.0%} of the memory is held",
    crit=f"more than {HELD_CRIT:.0%} is held",
    target=ASCEND,
)
DEVICE_IP = Check(
    "device-ip",
    NETWORK,
    "Every NIC has an address of its own, the one that the inventory declares.",
    "ssh {host} hccn_tool -i {device} -ip -s address A netmask M; or correct `device_ips:`",
    crit="no address, an address twice in the cluster, or not the declared one",
    target=ASCEND,
)
LINK = Check(
    "link",
    NETWORK,
    "The link of every NIC is up.",
    "ssh {host} hccn_tool -i {device} -link_stat -g; check cable, optical module and switch port",
    crit="link status DOWN",
    target=ASCEND,
)
NET_HEALTH = Check(
    "net-health",
    NETWORK,
    "The network of every NIC is healthy.",
    "ssh {host} hccn_tool -i {device} -net_health -g; check that the netdetect address answers",
    warn="Init: nothing was detected yet",
    crit="any other state than Success",
    target=ASCEND,
)
GATEWAY = Check(
    "gateway",
    NETWORK,
    "Every NIC has a gateway.",
    "ssh {host} hccn_tool -i {device} -gateway -s gateway A",
    warn="none is set",
    target=ASCEND,
)
NETDETECT = Check(
    "netdetect",
    NETWORK,
    "Every NIC has an address by which it sees that its network works.",
    "ssh {host} hccn_tool -i {device} -netdetect -s address A (usually the gateway)",
    warn="none is set",
    target=ASCEND,
)
TLS = Check(
    "tls",
    CLUSTER,
    "The TLS switch is the same on all devices (0 is advised).",
    "ssh {host} hccn_tool -i {device} -tls -s enable 0",
    crit="it differs",
    target=ASCEND,
)
PING = Check(
    "ping",
    NETWORK,
    "The NICs reach those of the same device id on other hosts (a ring and samples; --full: "
    "all pairs).",
    "ssh {host} hccn_tool -i {device} -ping -g address A; check address, gateway, VLAN and switch",
    warn="some packets are lost",
    crit="no packet arrives",
    target=ASCEND,
)
WIRING = Check(
    "wiring",
    NETWORK,
    "NICs of the same device id share a subnet; on 910A, devices k and k+4 of a host do, too.",
    "ssh {host} hccn_tool -i {device} -ip -g; give the NIC an address of its subnet",
    warn="another subnet; HCCL does not check it",
    target=ASCEND,
)
DRIVER = Check(
    "driver",
    CLUSTER,
    "All hosts have the same driver.",
    "install the same Ascend driver everywhere (…/driver/version.info says which is there)",
    warn="unknown",
    crit="it differs",
    target=ASCEND,
)
FIRMWARE = Check(
    "firmware",
    CLUSTER,
    "All hosts have the same firmware.",
    "install the same Ascend firmware everywhere (…/firmware/version.info says which is there)",
    warn="unknown",
    crit="it differs",
    target=ASCEND,
)
CANN = Check(
    "cann",
    CLUSTER,
    "All hosts have the same CANN.",
    "install the same CANN toolkit everywhere, and source the same set_env.sh in `setup:`",
    warn="unknown",
    crit="it differs",
    target=ASCEND,
)
MINDSPORE = Check(
    "mindspore",
    CLUSTER,
    "All hosts have MindSpore, the same version.",
    "install the same version everywhere: PYTHON -m pip install mindspore==VERSION",
    crit="it is missing, or differs",
)
PYTHON = Check(
    "python",
    CLUSTER,
    "All hosts run the same Python.",
    "set `python:` in the inventory to interpreters of the same version",
    warn="it differs",
)
CODE = Check(
    "glm2-code",
    CLUSTER,
    "Where glm2 is installed on hosts, it is the same code (`launch` sends its own along).",
    "install the same glm2-orch everywhere, or uninstall it there",
    warn="it differs",
)
HCCL_PORTS = Check(
    "hccl-ports",
    USER,
    "HCCL's ports on the host (60000 to 60031, or from HCCL_IF_BASE_PORT on) are free.",
    "end what listens there; keep them free: "
    "sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031,16666",
    crit="a port is taken",
    target=ASCEND,
)
NPU_PORT = Check(
    "npu-port",
    USER,
    "Port 16666, at which the NPUs meet, is free.",
    "end what listens there: it is often a process that an earlier job left behind",
    crit="the port is taken",
    target=ASCEND,
)
SCHEDULER_PORT = Check(
    "scheduler-port",
    USER,
    "The port of MindSpore's scheduler is free on the host of rank 0.",
    "end what listens there, or set another `scheduler_port:` in the inventory's `job:` section",
    crit="the port is taken",
)
HOSTNAME = Check(
    "hostname",
    CLUSTER,
    "No two hosts have the same hostname.",
    "ssh {host} hostnamectl set-hostname NAME",
    crit="two hosts have the same: MindSpore then counts their devices as those of one host",
    target=ASCEND,
)
PEERS = Check(
    "host-network",
    NETWORK,
    "Hosts reach each other (a ring and samples; --full: all pairs): a connection to HCCL's first "
    "port, on CPU to the scheduler's, is accepted or refused by the peer.",
    "allow all TCP ports between the hosts: systemctl stop firewalld, or a rule for their subnet; "
    "check routes and `server_id:`",
    crit="no answer, prohibited, or no route: the firewall is the most common cause",
)
RESOLVES = Check(
    "hostname-resolves",
    HOST,
    "The host can resolve its own name.",
    "add the name to /etc/hosts of {host}",
    warn="it cannot",
)
CLOCK = Check(
    "clock",
    CLUSTER,
    "The clocks agree, as exactly as the connection lets it be seen.",
    "ssh {host} chronyc tracking; start chronyd or ntpd there",
    warn=f"more than {SKEW_WARN_S:g} s off for certain",
    crit=f"more than {SKEW_CRIT_S:g} s off",
)
WORKDIR = Check(
    "workdir",
    HOST,
    "The work folder can be written and has room.",
    "free some space, or set another workdir in the inventory",
    warn=f"less than {LOW_FREE_ASCEND >> 30} GiB free (CPU: {LOW_FREE >> 30} GiB)",
    crit=f"not writable, or less than {MINIMUM_FREE >> 20} MiB free",
)
SHM = Check(
    "shm",
    HOST,
    "/dev/shm has room for the data loaders.",
    "ssh {host} mount -o remount,size=16G /dev/shm; a container: --shm-size=16g",
    warn=f"less than {LOW_SHM >> 30} GiB free, or not there",
    target=ASCEND,
)
OPEN_FILES = Check(
    "open-files",
    HOST,
    "A process may open many files: every connection to another rank is one.",
    "raise `nofile` in /etc/security/limits.conf of {host} (65536 is usual)",
    warn=f"fewer than {LOW_OPEN_FILES}",
    target=ASCEND,
)
MINDFORMERS = Check(
    "mindformers",
    USER,
    "MindFormers' script is there on all hosts, the same one (workload mindformers).",
    "install MindFormers at the same path on {host}, correct `mindformers_dir`, or stage it",
    crit="missing, unreadable, or it differs",
)
DATASET = Check(
    "dataset",
    USER,
    "The dataset of the job is there on all hosts, with the same content.",
    "copy it to the same path on {host}",
    crit="missing, unreadable, a relative path, or it differs",
)
VOCABULARY = Check(
    "vocabulary",
    USER,
    "The tokenizer's vocabulary is there on all hosts, with the same content.",
    "copy it to the same path on {host}",
    crit="missing, unreadable, a relative path, or it differs",
)
CHECKPOINT = Check(
    "checkpoint",
    USER,
    "The weights to start from are there on all hosts, with the same content (a folder of shards "
    "only has to be there).",
    "copy them to the same path on {host}",
    crit="missing, unreadable, a relative path, or they differ",
)

CHECKS: Tuple[Check, ...] = (
    REACHABLE,
    ANSWERS,
    TOOLS,
    UNDERSTOOD,
    NPU_PRESENT,
    NPU_HEALTH,
    NPU_ECC,
    NPU_PROCESSES,
    NPU_MEMORY,
    DEVICE_IP,
    LINK,
    NET_HEALTH,
    GATEWAY,
    NETDETECT,
    TLS,
    PING,
    WIRING,
    DRIVER,
    FIRMWARE,
    CANN,
    MINDSPORE,
    PYTHON,
    CODE,
    HCCL_PORTS,
    NPU_PORT,
    SCHEDULER_PORT,
    PEERS,
    HOSTNAME,
    RESOLVES,
    CLOCK,
    WORKDIR,
    SHM,
    OPEN_FILES,
    MINDFORMERS,
    DATASET,
    VOCABULARY,
    CHECKPOINT,
)
