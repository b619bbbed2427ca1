"""Everything that a host can say before a job is started on it, printed as one JSON object.

Sent over standard input together with ``probe.py`` (see ``engine/preflight.py``) and called as
``main(request)``; standard library only, Python 3.7 or newer, and nothing is left on the host.
What tools print is handed on as it is: it is understood elsewhere, by ``orchestrator.preflight``.
``request`` has two parts, each of which may be null:

``survey``: ``devices``, ``workdir``, ``port`` and ``tools`` as the probe has them; ``address``
(where the other hosts reach this one), ``ports`` to be free there, ``peers`` (address and port of
other hosts), ``files`` that the job reads, ``whole`` (read large files whole).

``pings``: pairs ``[device, address]`` that ``hccn_tool`` is to ping.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import resource
import shutil
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from . import probe

AT_ONCE = 8
"""Tools that run at the same time. Each device answers one question after the other."""
PEER_TIMEOUT_S = 5.0
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 20
_MOST_FILES = 2000
_TOOL_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin")
_ABOUT_NIC = ("ip", "link", "net_health", "gateway", "netdetect", "tls")


def answer(request: Mapping[str, Any]) -> Dict[str, Any]:
    """The report; its clock readings enclose all that was done."""
    report: Dict[str, Any] = {"schema": 1, "start": _clock()}
    survey, pings = request.get("survey"), request.get("pings")
    if survey is not None:
        report.update(look_around(survey))
    if pings is not None:
        report["pings"] = _run_all([_ping(device, address) for device, address in pings])
    report["end"] = _clock()
    return report


def look_around(wanted: Mapping[str, Any]) -> Dict[str, Any]:
    """All but the pings."""
    devices, tools = wanted["devices"], wanted["tools"]
    return {
        "facts": probe.facts(devices, wanted["workdir"], wanted["port"], tools),
        "commands": _run_all(_questions(devices)) if tools else [],
        "run_ids": _run_ids() if tools else {},
        "ports": check_ports(wanted["address"], wanted["ports"]),
        "peers": reach(wanted["peers"]),
        "names": _resolve(socket.gethostname()),
        "shm": _room("/dev/shm"),
        "open_files": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "code": code_digest("glm2"),
        "files": [
            file_digest(path, wanted["whole"], folders=alike) for path, alike in wanted["files"]
        ],
    }


# Tools


def _questions(devices: Sequence[int]) -> List[List[str]]:
    asked = [["npu-smi", "info"]]
    for device in devices:
        for topic in ("health", "ecc"):
            asked.append(["npu-smi", "info", "-t", topic, "-i", str(device)])
        for topic in _ABOUT_NIC:
            asked.append(["hccn_tool", "-i", str(device), "-" + topic, "-g"])
    return asked


def _ping(device: int, address: str) -> List[str]:
    return ["hccn_tool", "-i", str(device), "-ping", "-g", "address", address]


def _run_all(commands: Sequence[List[str]]) -> List[Dict[str, Any]]:
    places = {name: find_tool(name) for name in {command[0] for command in commands}}
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return list(pool.map(lambda command: _run(command, places[command[0]]), commands))


def _run(command: List[str], place: Optional[str]) -> Dict[str, Any]:
    """``status`` is null when there is no such tool, it cannot be run, or did not end in time;
    ``error`` says which."""
    if place is None:
        return {"argv": command, "status": None, "output": "", "error": "not found"}
    status, output, error = probe.run_tool([place, *command[1:]])
    return {"argv": command, "status": status, "output": output, "error": error}


def find_tool(name: str) -> Optional[str]:
    """Path of a tool: of the PATH, else where the driver puts it."""
    root = os.environ.get("GLM2_ASCEND_ROOT", "/usr/local/Ascend")
    folders = os.pathsep.join((os.path.join(root, "driver", "tools"), *_TOOL_FOLDERS))
    return shutil.which(name) or shutil.which(name, path=folders)


def _run_ids() -> Dict[str, str]:
    """Run of glm2-orch by process id, for what may be found on a device."""
    found = {}
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:  # ended, or another user's
            continue
        for variable in variables:
            if variable.startswith(b"GLM2_RUN_ID="):
                found[str(pid)] = variable.partition(b"=")[2].decode("utf-8", "replace")
    return found


# Ports


def check_ports(address: str, ports: Sequence[int]) -> Dict[str, Any]:
    """For each port that is taken at ``address``: who has it (null: not known)."""
    return {str(port): _holder(port) for port in ports if not _is_free(address, port)}


def _is_free(address: str, port: int) -> bool:
    """Whether a server could listen there. An address that is not this host's own, as behind
    an address translation, stands for all."""
    for candidate in (address, "0.0.0.0"):
        try:
            family, kind, _, _, place = socket.getaddrinfo(
                candidate, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )[0]
            with socket.socket(family, kind) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(place)
                server.listen(1)
            return True
        except socket.gaierror:  # a name
            continue
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                return False
    return True


def _holder(port: int) -> Optional[Dict[str, Any]]:
    """A process that has the port, listening or by a connection, as far as this user may see."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            if int(row[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{row[9]}]")
    for pid in _pids() if inodes else ():
        if not inodes.isdisjoint(_open_files(pid)):
            return {"pid": pid, "command": _command(pid)}
    return None


def _open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(os.path.join(folder, name))
        except OSError:
            continue


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
    return probe.one_line(words, 80)


def _pids() -> List[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


# Names, peers and room


def reach(peers: Sequence[Sequence[Any]]) -> List[Optional[str]]:
    """For each address and port: null when the host there answers, if only by refusing the
    connection; else what stands between, such as a firewall that drops or prohibits."""
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return list(pool.map(lambda peer: _unreached(str(peer[0]), int(peer[1])), peers))


def _unreached(address: str, port: int) -> Optional[str]:
    try:
        socket.create_connection((address, port), timeout=PEER_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return None
    except socket.timeout:
        return f"no answer within {PEER_TIMEOUT_S:g} s"
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _resolve(name: str) -> Dict[str, Any]:
    """Addresses of a name as this host sees them, or why there are none."""

    def ask() -> Tuple[List[str], Optional[str]]:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return [], str(error)
        return sorted({str(entry[4][0]) for entry in found}), None

    result = probe.within(probe.NAME_TIMEOUT_S, ask)
    addresses, error = result if result is not None else ([], "no answer in time")
    return {"hostname": name, "addresses": addresses, "error": error}


def _room(folder: str) -> Optional[Dict[str, int]]:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return {
        "free_bytes": status.f_bavail * status.f_frsize,
        "total_bytes": status.f_blocks * status.f_frsize,
    }


# Files


def file_digest(path: str, whole: bool, *, folders: bool = True) -> Dict[str, Any]:
    """Size and SHA-256 of a file, or of all files of a folder with their names.

    Of a file beyond 64 MiB only 64 evenly spread MiB are read unless ``whole``: ``sampled``. With
    ``folders`` False a folder is only looked for: its ``sha256`` is null.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        if is_folder and not folders:
            parts = []
        elif is_folder:
            files = _files_below(path)
            parts = [(os.path.relpath(file, path), _digest(file, whole)) for file in files]
        else:
            parts = [("", _digest(path, whole))]
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return {"path": path, "missing": missing, "error": error.strerror}
    total = hashlib.sha256()
    for name, (size, digest, _) in parts:
        total.update(f"{name}\0{size}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return {
        "path": path,
        "missing": False,
        "error": None,
        "files": len(parts),
        "bytes": sum(size for _, (size, _, _) in parts),
        "sha256": _digest_of(parts, total.hexdigest()) if folders or not is_folder else None,
        "sampled": any(sampled for _, (_, _, sampled) in parts),
    }


def _digest_of(parts: Sequence[Tuple[str, Tuple[int, str, bool]]], all_of_them: str) -> str:
    """A single file has its own digest, as sha256sum says it."""
    return parts[0][1][1] if parts and not parts[0][0] else all_of_them


def _files_below(folder: str) -> List[str]:
    found: List[str] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.join(place, name) for name in sorted(names)]
        if len(found) > _MOST_FILES:
            raise OSError(errno.EFBIG, f"holds more than {_MOST_FILES} files")
    return found


def _digest(path: str, whole: bool) -> Tuple[int, str, bool]:
    """Size, SHA-256, and whether only samples were read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        sampled = not whole and size > _SAMPLES * _SAMPLE_BYTES
        if not sampled:
            for block in iter(lambda: file.read(_SAMPLE_BYTES), b""):
                digest.update(block)
            return size, digest.hexdigest(), False
        last = size - _SAMPLE_BYTES
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return size, digest.hexdigest(), True


def code_digest(package: str) -> Optional[Dict[str, Any]]:
    """SHA-256 over the Python and YAML files of a package installed here; null without one."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = next(iter(spec.submodule_search_locations))
    total = hashlib.sha256()
    try:
        for path in _files_below(folder):
            if path.endswith((".py", ".yaml")):
                name, digest = os.path.relpath(path, folder), _digest(path, True)[1]
                total.update(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        return None
    return {"path": folder, "sha256": total.hexdigest()}


def _clock() -> Dict[str, float]:
    return {"wall": time.time(), "mono": time.monotonic()}


def main(request: Mapping[str, Any]) -> None:
    print(json.dumps(answer(request)))
