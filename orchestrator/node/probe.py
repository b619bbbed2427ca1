"""Facts of one host, printed as one JSON object.

Runs as ``python3 - --devices 0,1 --workdir DIR --port BASE < probe.py``: one file, standard
library only, Python 3.7 or newer, and nothing is left on the host. A fact that cannot be found
is null with its reason beside it; only a wrong command line ends in an error.

Environment, for hosts that keep things elsewhere: GLM2_HCCN_CONF (default /etc/hccn.conf),
GLM2_ASCEND_ROOT (default /usr/local/Ascend).
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import importlib.util
import ipaddress
import json
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

TOOL_TIMEOUT_S = 15.0
NAME_TIMEOUT_S = 3.0
_PORTS_TRIED = 1000

_T = TypeVar("_T")


def facts(devices: Sequence[int], workdir: str, port: Optional[int], tools: bool) -> Dict[str, Any]:
    """Everything asked for. ``tools`` False: the devices are no Ascend devices, ask no tool."""
    root = os.environ.get("GLM2_ASCEND_ROOT", "/usr/local/Ascend")
    version, mindspore_error = find_mindspore(sys.path)
    ips, source, ip_errors = device_ips(devices, root) if tools else ({}, None, {})
    return {
        "schema": 1,
        "hostname": socket.gethostname(),
        "fqdn": _fqdn(),
        "python": platform.python_version(),
        "python_executable": sys.executable,
        "mindspore": version,
        "mindspore_error": mindspore_error,
        "cann": _version(cann_files(root), "version"),
        "driver": _version([os.path.join(root, "driver", "version.info")], "Version"),
        "firmware": _version([os.path.join(root, "firmware", "version.info")], "Version"),
        "device_ips": {str(device): ip for device, ip in ips.items()},
        "device_ip_source": source,
        "device_ip_errors": {str(device): text for device, text in ip_errors.items()},
        "workdir": check_workdir(workdir),
        "shm_free_bytes": _free_bytes("/dev/shm"),
        "free_port": None if port is None else free_port(port, workdir),
        "uid": os.getuid(),
        "user": _user(),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "cpu_count": os.cpu_count(),
        # Last: the nearer to the answer, the better the clocks of two hosts can be compared.
        "wall": time.time(),
        "mono": time.monotonic(),
    }


# Parsers: text of a tool or file -> fact


def parse_hccn_ip(output: str) -> Optional[str]:
    """``hccn_tool -i N -ip -g`` -> address, or None when it names none.

    Only a line ``ipaddr:A`` counts, and only when A is an address that a NIC can have: messages
    of the tool contain colons as well.
    """
    for line in output.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip().lower() == "ipaddr":
            return _address(value)
    return None


def parse_hccn_conf(text: str) -> Dict[int, str]:
    """``/etc/hccn.conf`` -> address by device id; lines that hold no valid address are left out."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*address_(\d+)\s*=(.*)$", line)
        address = match and _address(match.group(2))
        if match and address:
            found[int(match.group(1))] = address
    return found


def parse_info(text: str, key: str) -> Optional[str]:
    """``version.info`` and ``*_install.info`` -> value of ``key`` (``key=value``, any case)."""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip().lower() == key.lower() and value.strip():
            return value.strip()
    return None


def parse_dist_info(name: str) -> Optional[str]:
    """Name of a ``.dist-info`` folder -> version, when it is one of MindSpore's distributions."""
    match = re.match(r"mindspore(?:[-_](?:ascend|gpu))?-([^-]+)\.dist-info$", name, re.IGNORECASE)
    return match.group(1) if match else None


def one_line(output: str, limit: int = 200) -> str:
    """Output of a tool as one printable line, for a message."""
    text = " ".join(output.split())
    return "".join(c if c.isprintable() else "?" for c in text)[:limit]


def _address(text: str) -> Optional[str]:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    usable = not (address.is_unspecified or address.is_loopback or address.is_multicast)
    return str(address) if usable else None


# Devices


def device_ips(
    devices: Sequence[int], root: str
) -> Tuple[Dict[int, str], Optional[str], Dict[int, str]]:
    """Addresses, where they are from, and why others are missing, by device id.

    hccn_tool reads the NIC itself and is believed; the file, which may be stale, is read only
    when the tool knows no address at all. The two are never mixed.
    """
    found, errors = _ask_hccn_tool(devices, root)
    if found or not devices:
        return found, "hccn_tool" if found else None, errors
    path = os.environ.get("GLM2_HCCN_CONF", "/etc/hccn.conf")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            configured = parse_hccn_conf(file.read())
    except OSError as error:
        reason = f"{path}: {error.strerror}"
        return {}, None, {device: f"{errors[device]}; {reason}" for device in devices}
    found = {device: configured[device] for device in devices if device in configured}
    missing = {
        device: f"{errors[device]}; {path}: no valid address_{device}"
        for device in devices
        if device not in configured
    }
    return found, "hccn.conf" if found else None, missing


def _ask_hccn_tool(devices: Sequence[int], root: str) -> Tuple[Dict[int, str], Dict[int, str]]:
    """All devices at once; each call takes about a second on some drivers."""
    tool = shutil.which("hccn_tool") or os.path.join(root, "driver", "tools", "hccn_tool")
    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        answers = list(pool.map(lambda device: _ask_device(tool, device), devices))
    found = {d: address for d, (address, _) in zip(devices, answers) if address is not None}
    return found, {d: error for d, (_, error) in zip(devices, answers) if d not in found}


def _ask_device(tool: str, device: int) -> Tuple[Optional[str], str]:
    """Address of one device, or None and the reason."""
    status, text, error = run_tool([tool, "-i", str(device), "-ip", "-g"])
    if status is None:
        return None, f"hccn_tool: {error}"
    address = parse_hccn_ip(text)
    if address is not None and status == 0:
        return address, ""
    said = one_line(text) or "no output"
    return None, f"hccn_tool ended with status {status}: {said}"


def run_tool(argv: Sequence[str]) -> Tuple[Optional[int], str, str]:
    """Exit status and output of a tool, standard error included; or no status and the reason."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return None, "", str(error.strerror)
    with process:
        try:
            output = process.communicate(timeout=TOOL_TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for yet: the id is still its own
            return None, "", f"no answer within {TOOL_TIMEOUT_S:g} s"
    return process.returncode, output.decode("utf-8", "replace"), ""


# Software


def find_mindspore(path: Sequence[str]) -> Tuple[Optional[str], Optional[str]]:
    """Version of the MindSpore in the folders ``path``, or None and the reason.

    Read from its metadata: importing it takes seconds. By hand, because importlib.metadata came
    with Python 3.8.
    """
    versions = [parse_dist_info(name) for folder in path for name in _names(folder)]
    version = next((v for v in versions if v), None)
    if version is None:
        return None, f"no MindSpore is installed for {sys.executable}"
    if importlib.util.find_spec("mindspore") is None:
        return None, f"MindSpore {version} has metadata but no package for {sys.executable}"
    return version, None


def cann_files(root: str) -> List[str]:
    """Where CANN says its version, the toolkit of the environment first."""
    arch = f"{platform.machine()}-linux"
    places = [os.environ.get("ASCEND_TOOLKIT_HOME"), os.environ.get("ASCEND_HOME_PATH")]
    places += [os.path.join(root, "ascend-toolkit", "latest"), os.path.join(root, "nnae", "latest")]
    return [
        os.path.join(place, folder, name)
        for place in places
        if place
        for folder in (arch, "")
        for name in ("ascend_toolkit_install.info", "ascend_nnae_install.info")
    ]


def _version(paths: Sequence[str], key: str) -> Optional[str]:
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                value = parse_info(file.read(), key)
        except OSError:
            continue
        if value:
            return value
    return None


# Room


def check_workdir(path: str) -> Dict[str, Any]:
    """Whether files can be made in ``path``, or it in its nearest parent, by making one."""
    folder = path
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    error = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".glm2-probe-") as file:
            file.write(b"\0" * 4096)  # a full disk still has room for an empty file
    except OSError as problem:
        error = f"{folder}: {problem.strerror}"
    return {
        "path": path,
        "exists": os.path.isdir(path),
        "writable": error is None,
        "error": error,
        "free_bytes": _free_bytes(folder),
    }


def free_port(base: int, workdir: str) -> Optional[int]:
    """The first TCP port from ``base`` up that nobody has on any interface, and that no run has
    leased; None without one."""
    for port in range(base, min(base + _PORTS_TRIED, 65536)):
        if not _is_leased(port, workdir) and _is_free(port):
            return port
    return None


def _is_leased(port: int, workdir: str) -> bool:
    """Whether a supervisor has the port for a scheduler that may not listen yet; see leases.py."""
    name = "{}.port_{}.lock".format(os.uname().nodename, port)
    try:
        lock = os.open(os.path.join(workdir, "leases", name), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(lock)
    return False


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                return False  # any other error for IPv6: this host has none
    return True


def _free_bytes(folder: str) -> Optional[int]:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


# Names


def _fqdn() -> Optional[str]:
    """None when the name service does not answer soon: it can hang for half a minute."""
    return within(NAME_TIMEOUT_S, socket.getfqdn)


def within(seconds: float, ask: Callable[[], _T]) -> Optional[_T]:
    """What ``ask`` answers, or None when it does not in time; it is then left behind."""
    answers: List[_T] = []
    asking = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else None


def _user() -> Optional[str]:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # usual in containers
        return None


def _first_line(path: str) -> Optional[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except OSError:
        return None


def _names(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:  # sys.path names archives and folders that do not exist, too
        return []


def _devices(text: str) -> List[int]:
    return [int(word) for word in text.split(",") if word.strip()]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="probe.py", description=__doc__)
    parser.add_argument("--devices", type=_devices, default=[], metavar="0,1,2")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--port", type=int, metavar="BASE")
    parser.add_argument("--no-device-tools", action="store_false", dest="tools")
    options = parser.parse_args(arguments)
    print(json.dumps(facts(options.devices, options.workdir, options.port, options.tools)))


if __name__ == "__main__":
    main(sys.argv[1:])
