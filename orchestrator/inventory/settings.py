"""Settings of hosts as the YAML states them: each value checked where it stands.

A layer (``defaults:``, one group, one key of ``hosts:``) becomes a flat mapping from setting to
value and place; ``ssh`` and ``env`` are flattened to ``ssh.port``, ``env.NAME``, so that laying
one layer over another is one ``dict.update``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Tuple

import yaml

from orchestrator.errors import Location
from orchestrator.inventory.devices import DevicesError, check_devices, parse_devices
from orchestrator.inventory.patterns import PatternError, expand
from orchestrator.problems import Problems, is_control, nearest, shown
from orchestrator.yaml_positions import place

DEVICE_TARGETS = ("Ascend", "CPU")
CONNECTIONS = ("ssh", "local")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]*")


@dataclass(frozen=True)
class Setting:
    """One value of a layer and where it stands; None: malformed, and reported."""

    value: object
    at: Location


Layer = Dict[str, Setting]


class Reader:
    """Reads nodes of one file into values; what is wrong goes to ``problems``."""

    def __init__(self, filename: str, problems: Problems) -> None:
        self.filename = filename
        self.problems = problems
        self.all_names_read = True
        """False after a host pattern that could not be read: who is missing is then not known."""

    def wrong(self, node: yaml.Node, message: str, hint: str = "", offset: int = 0) -> None:
        self.problems.add(message, place(node, self.filename, offset), hint)

    def entries(
        self, node: yaml.Node, what: str, known: Optional[Tuple[str, ...]] = None
    ) -> Dict[str, Tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes of a mapping; reports what is no mapping and unknown keys."""
        if not isinstance(node, yaml.MappingNode):
            if _is_null(node):
                self.wrong(node, f"{what} is empty", "fill it in, or remove the key")
            else:
                self.wrong(node, f"{what} must be a mapping", "write `key: value` lines below it")
            return {}
        found: Dict[str, Tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if known is not None and key.value not in known:
                self.wrong(
                    key, f"unknown key {shown(key.value)} in {what}", nearest(key.value, known)
                )
            else:
                found[key.value] = (key, value)
        return found

    def text(self, node: yaml.Node, what: str) -> Optional[str]:
        """Non-empty text on one line, exactly as written (``yes`` and ``010`` stay so)."""
        if not isinstance(node, yaml.ScalarNode):
            self.wrong(node, f"{what} must be text", "quote it if it starts with a bracket")
            return None
        value = str(node.value)
        if _is_null(node) or not value.strip():
            self.wrong(node, f"{what} is empty", "fill it in, or remove the key")
            return None
        if any(is_control(char) for char in value):
            self.wrong(node, f"{what} {shown(value)} contains a control character", "remove it")
            return None
        return value

    def names(self, node: yaml.Node, what: str) -> List[Tuple[str, Location]]:
        """Host names of a pattern, or of a list of patterns; each with its place."""
        if isinstance(node, yaml.SequenceNode):
            if not node.value:
                self.wrong(node, f"{what} is an empty list", "name at least one host")
            return [found for item in node.value for found in self.names(item, what)]
        if isinstance(node, yaml.MappingNode):
            self.wrong(node, f"{what} must be a pattern or a list of patterns", 'e.g. "node[1-4]"')
            return []
        text = self.text(node, what)
        return [] if text is None else self.expanded(node, text)

    def expanded(self, node: yaml.Node, text: str) -> List[Tuple[str, Location]]:
        """Names of the host pattern ``text`` that stands at ``node``."""
        try:
            names = expand(text)
        except PatternError as error:
            self.wrong(
                node,
                f"host pattern {shown(text)}: {error}",
                'write e.g. "192.168.0.[0-11]" or "node[01-12,15]"',
                error.offset,
            )
            self.all_names_read = False
            return []
        for name in names:
            if _NAME.fullmatch(name) is None or len(name) > 128:
                self.wrong(
                    node,
                    f"host name {shown(name)} is not usable",
                    "it names folders and ssh targets: letters, digits, `.`, `_`, `-`, starting "
                    "with a letter or digit; give an IPv6 address as `address:`",
                )
                self.all_names_read = False
                return []
        return [(name, place(node, self.filename)) for name in names]

    def layer(self, entries: Mapping[str, Tuple[yaml.Node, yaml.Node]], what: str) -> Layer:
        """The settings among ``entries`` (a mapping's keys and values), flattened."""
        layer: Layer = {}
        for key, (_, node) in entries.items():
            if key == "ssh":
                ssh = self.entries(node, f"`ssh` of {what}", tuple(_SSH))
                for option, (_, value) in ssh.items():
                    self._put(layer, f"ssh.{option}", value, _SSH[option])
            elif key == "env":
                for name, (name_node, value) in self.entries(node, f"`env` of {what}").items():
                    if _ENV_NAME.fullmatch(name) is None:
                        self.wrong(
                            name_node,
                            f"{shown(name)} is not a name of an environment variable",
                            "use letters, digits and `_`, not starting with a digit",
                        )
                    else:
                        self._put(layer, f"env.{name}", value, Reader.env_value)
            else:
                self._put(layer, key, node, SETTINGS[key])
        return layer

    def _put(
        self,
        layer: Layer,
        key: str,
        node: yaml.Node,
        parse: Callable[[Reader, yaml.Node, str], object],
    ) -> None:
        value = parse(self, node, f"`{key}`")
        layer[key] = Setting(value, place(node, self.filename))

    # One method a kind of value. Each returns None after reporting a problem.

    def env_value(self, node: yaml.Node, what: str) -> Optional[str]:
        if isinstance(node, yaml.ScalarNode) and not _is_null(node) and node.value == "":
            return ""
        return self.text(node, what)

    def integer(self, node: yaml.Node, what: str) -> Optional[int]:
        text = self.text(node, what)
        if text is None:
            return None
        if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) <= 65_535:
            self.wrong(
                node, f"{what} {shown(text)} is not a port", "write a number from 1 to 65535"
            )
            return None
        return int(text)

    def seconds(self, node: yaml.Node, what: str) -> Optional[float]:
        text = self.text(node, what)
        if text is None:
            return None
        if not re.fullmatch(r"\d{1,6}(\.\d+)?", text) or float(text) <= 0:
            self.wrong(node, f"{what} {shown(text)} is not a time in seconds", "write e.g. 10")
            return None
        return float(text)

    def address(self, node: yaml.Node, what: str) -> Optional[str]:
        text = self.text(node, what)
        if text is not None and (_ADDRESS.fullmatch(text) is None or len(text) > 253):
            self.wrong(node, f"{what} {shown(text)} is not a host name or IP address")
            return None
        return text

    def server_id(self, node: yaml.Node, what: str) -> Optional[str]:
        text = self.text(node, what)
        if text is not None and len(text) > 64:
            self.wrong(node, f"{what} has {len(text)} characters, HCCL allows 64", "shorten it")
            return None
        return text

    def user(self, node: yaml.Node, what: str) -> Optional[str]:
        text = self.text(node, what)
        if text is not None and _USER.fullmatch(text) is None:
            self.wrong(node, f"{what} {shown(text)} is not a user name")
            return None
        return text

    def devices(self, node: yaml.Node, what: str) -> Optional[Tuple[int, ...]]:
        try:
            if isinstance(node, yaml.SequenceNode):
                return self._device_list(node)
            text = self.text(node, what)
            return None if text is None else parse_devices(text)
        except DevicesError as error:
            self.wrong(node, f"{what}: {error}", error.hint)
            return None

    def _device_list(self, node: yaml.SequenceNode) -> Tuple[int, ...]:
        texts = [str(item.value) for item in node.value if isinstance(item, yaml.ScalarNode)]
        if len(texts) < len(node.value) or not all(re.fullmatch(r"\d{1,5}", t) for t in texts):
            raise DevicesError("a list of devices holds numbers only", "write e.g. [0, 1, 4, 5]")
        ids = [int(text) for text in texts]
        if len(ids) == 2 and ids[1] > ids[0] + 1:
            raise DevicesError(
                f"[{ids[0]},{ids[1]}] without quotes is a YAML list of two devices, which is "
                "easily taken for a range",
                f'write "[{ids[0]},{ids[1]})" for devices {ids[0]} to {ids[1] - 1}, '
                f'or "{ids[0]},{ids[1]}" for just these two',
            )
        return check_devices(ids)

    def device_ips(self, node: yaml.Node, what: str) -> Optional[Tuple[str, ...]]:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        addresses: List[str] = []
        for item in items:
            text = self.text(item, what)
            if text is None:
                return None
            try:
                names = expand(text)
            except PatternError as error:
                self.wrong(
                    item,
                    f"{what} {shown(text)}: {error}",
                    'write e.g. "10.1.[0-7].10"',
                    error.offset,
                )
                return None
            for name in names:
                try:
                    ipaddress.ip_address(name)
                except ValueError:
                    self.wrong(
                        item,
                        f"{what}: {shown(name)} is not an IP address",
                        "write what `hccn_tool -i N -ip -g` reports for each device",
                    )
                    return None
            addresses.extend(names)
        return tuple(addresses)

    def target(self, node: yaml.Node, what: str) -> Optional[str]:
        return self._choice(node, what, DEVICE_TARGETS)

    def connection(self, node: yaml.Node, what: str) -> Optional[str]:
        return self._choice(node, what, CONNECTIONS)

    def ssh_config(self, node: yaml.Node, what: str) -> Optional[str]:
        """``true``, ``false``, or the path of an OpenSSH configuration."""
        text = self.text(node, what)
        return text.lower() if text is not None and text.lower() in ("true", "false") else text

    def shared(self, node: yaml.Node, what: str) -> Optional[str]:
        """``true``, or the absolute path under which this machine sees the workdir."""
        text = self.text(node, what)
        if text is None or text == "true" or text.startswith("/"):
            return text
        self.wrong(
            node,
            f"{what} {shown(text)} is neither `true` nor an absolute path",
            "write `true` where this machine sees the workdir under the same path, else that path",
        )
        return None

    def _choice(self, node: yaml.Node, what: str, choices: Tuple[str, ...]) -> Optional[str]:
        text = self.text(node, what)
        if text is not None and text not in choices:
            self.wrong(node, f"{what} {shown(text)} is not one of {', '.join(choices)}")
            return None
        return text

    def program(self, node: yaml.Node, what: str) -> Optional[str]:
        text = self.text(node, what)
        if text is not None and text.startswith("-"):
            self.wrong(node, f"{what} {shown(text)} is not a program", "write a path or a name")
            return None
        return text


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and str(node.tag) == "tag:yaml.org,2002:null"


_Parse = Callable[[Reader, yaml.Node, str], object]

_SSH: Dict[str, _Parse] = {
    "user": Reader.user,
    "port": Reader.integer,
    "key": Reader.text,
    "known_hosts": Reader.text,
    "connect_timeout": Reader.seconds,
    "config": Reader.ssh_config,
    "jump": Reader.text,
}

SETTINGS: Dict[str, _Parse] = {
    "address": Reader.address,
    "server_id": Reader.server_id,
    "devices": Reader.devices,
    "device_ips": Reader.device_ips,
    "device_target": Reader.target,
    "connection": Reader.connection,
    "workdir": Reader.text,
    "shared_workdir": Reader.shared,
    "python": Reader.program,
    "setup": Reader.text,
}
"""Settings of a host besides ``ssh`` and ``env``, each with the method that reads it."""

HOST_KEYS = (*SETTINGS, "ssh", "env")
