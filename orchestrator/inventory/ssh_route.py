"""How a host is reached over SSH: what the inventory says, over what ``ssh_config`` says.

Of OpenSSH's configuration these are followed: Host and Match blocks (also with exec), Include,
HostName, User, Port, IdentityFile (the first that exists), UserKnownHostsFile (the first),
ConnectTimeout, ProxyJump and ProxyCommand. It is read when the inventory is: a run keeps what it
was started with.
"""

from __future__ import annotations

import glob
import io
import os.path
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from orchestrator.inventory.model import Gateway, SshAddress, SshOptions

_JUMP = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._@-]*)@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*))(?::(?P<port>\d{1,5}))?"
)
_KEYWORD = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*?)\s*$")
_MOST_INCLUDES = 16


class RouteError(ValueError):
    """``str(error)`` says what is wrong, ``hint`` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Said:
    """What the inventory says of a host's SSH; None: nothing. Paths are absolute."""

    user: Optional[str] = None
    port: Optional[int] = None
    key: Optional[str] = None
    known_hosts: Optional[str] = None
    connect_timeout: Optional[float] = None
    jump: Optional[str] = None
    """``[user@]host[:port]``, several with commas between, or ``none``."""


class SshConfig:
    """An OpenSSH configuration file. Raises RouteError when it cannot be read."""

    def __init__(self, path: Path, home: Path) -> None:
        import paramiko  # only here: it takes a while

        self.path = path
        self._home = home
        try:
            text = "\n".join(_lines(path, home, 0))
            self._config = paramiko.SSHConfig.from_file(io.StringIO(text))
        except OSError as error:
            raise RouteError(
                f"cannot read the SSH configuration {path}: {error.strerror}",
                "correct `ssh.config`, or leave it out",
            ) from error
        except (paramiko.SSHException, UnicodeDecodeError) as error:
            raise RouteError(
                f"the SSH configuration {path} cannot be read: {error}", "ssh -G HOST shows more"
            ) from error

    def of(self, name: str) -> Dict[str, Any]:
        """Options for ``ssh name``, by name in lower case."""
        import paramiko

        try:
            return dict(self._config.lookup(name))
        except (paramiko.SSHException, ImportError, KeyError, ValueError) as error:
            raise RouteError(
                f"{self.path} cannot be used for {name}: {error}",
                "say it in the inventory: `Match canonical` and their like are not followed",
            ) from error

    def expanded(self, path: str) -> str:
        """An absolute path; ``~`` is home."""
        if path.startswith("~/"):
            return str(self._home / path[2:])
        return os.path.normpath(self._home / path)


def route(address: str, said: Said, config: Optional[SshConfig]) -> Tuple[SshAddress, SshOptions]:
    """Where to connect for ``address`` (which may be an alias of ``config``), and how. Raises
    RouteError."""
    found = config.of(address) if config else {}
    options = _options(said, found, config)
    jump = said.jump if said.jump is not None else found.get("proxyjump", "")
    command = None if said.jump is not None else found.get("proxycommand")
    gateways: List[Gateway] = []
    if jump and jump.lower() != "none":
        command = None
        for hop in str(jump).split(","):
            gateways += _gateways(hop.strip(), said, config, depth=0)
    return SshAddress(str(found.get("hostname", address))), SshOptions(
        **options, gateways=tuple(gateways), proxy_command=command
    )


def _gateways(hop: str, said: Said, config: Optional[SshConfig], depth: int) -> Iterator[Gateway]:
    """The gateway ``[user@]host[:port]``, behind those that its own configuration names."""
    match = _JUMP.fullmatch(hop)
    port = int(match.group("port") or 22) if match else 0
    if match is None or not 1 <= port <= 65_535:
        raise RouteError(f"{hop!r} is no jump host", "write user@host:port, or none")
    if depth > 8:
        raise RouteError(f"the way to jump host {hop!r} leads through itself", "mend ProxyJump")
    name = match.group("v6") or match.group("host")
    found = config.of(name) if config else {}
    before = found.get("proxyjump", "")
    if before and before.lower() != "none":
        for one in before.split(","):
            yield from _gateways(one.strip(), said, config, depth + 1)
    own = Said(
        user=match.group("user") or (None if found.get("user") else said.user),
        port=int(match.group("port")) if match.group("port") else None,
        key=said.key,
        known_hosts=said.known_hosts,
    )
    options = _options(own, found, config)
    yield Gateway(
        SshAddress(str(found.get("hostname", name))),
        options["user"],
        options["port"],
        options["key"],
        options["known_hosts"],
    )


def _options(said: Said, found: Dict[str, Any], config: Optional[SshConfig]) -> Dict[str, Any]:
    key, known_hosts = said.key, said.known_hosts
    if config is not None:
        files = [config.expanded(file) for file in found.get("identityfile", ())]
        if key is None and files:
            key = next((file for file in files if os.path.exists(file)), files[0])
        if known_hosts is None and found.get("userknownhostsfile"):
            known_hosts = config.expanded(shlex.split(found["userknownhostsfile"])[0])
    try:
        port = said.port or int(found.get("port", 22))
        timeout = said.connect_timeout or float(found.get("connecttimeout", 10.0))
    except ValueError as error:
        raise RouteError(f"a number in {config and config.path} is none: {error}") from error
    return {
        "user": said.user or found.get("user"),
        "port": port,
        "key": key,
        "known_hosts": known_hosts,
        "connect_timeout": timeout,
    }


def _lines(path: Path, home: Path, depth: int) -> Iterator[str]:
    """Lines of the file with those of included ones in their place, which Paramiko does not do."""
    if depth > _MOST_INCLUDES:
        raise RouteError(f"{path} includes itself", "mend its Include lines")
    block = "Host *"
    for line in path.read_text("utf-8").splitlines():
        match = _KEYWORD.match(line)
        keyword = match.group(1).lower() if match else ""
        if keyword in ("host", "match"):
            block = line
        if match is None or keyword != "include":
            yield line
            continue
        for pattern in shlex.split(match.group(2)):
            full = str(home / pattern[2:]) if pattern.startswith("~/") else pattern
            for name in sorted(glob.glob(str(home / ".ssh" / full))):
                yield from _lines(Path(name), home, depth + 1)
                yield block  # what follows belongs where it stood
