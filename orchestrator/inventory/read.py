"""Inventory YAML -> Inventory: which hosts there are, and each one's settings resolved."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, TypeVar, cast

import yaml

from orchestrator.errors import InventoryError, Location
from orchestrator.inventory.devices import unfit_for_910
from orchestrator.inventory.limit import ALL
from orchestrator.inventory.model import (
    SPARES,
    DeviceIp,
    Host,
    Inventory,
    ServerId,
    SshAddress,
    SshOptions,
)
from orchestrator.inventory.notify import read_notify
from orchestrator.inventory.settings import HOST_KEYS, Layer, Reader
from orchestrator.inventory.ssh_route import RouteError, Said, SshConfig, route
from orchestrator.problems import Problems, shown
from orchestrator.yaml_positions import compose, document

_TOP = ("cluster", "ssh", "defaults", "groups", "hosts", "job", "notify")
_T = TypeVar("_T")


def load_inventory(path: Path, *, default_python: str, home: Path) -> Inventory:
    """Read the inventory file ``path``.

    ``default_python`` is the interpreter of hosts with ``connection: local`` that name none,
    ``home`` stands for ``~``. Raises InventoryError with every problem that was found.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InventoryError(
            f"there is no inventory {path}", hint="give the path of a YAML file to --inventory"
        ) from error
    except UnicodeDecodeError as error:
        raise InventoryError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise InventoryError(f"cannot read {path}: {error.strerror}") from error
    return parse_inventory(
        text, str(path), folder=path.absolute().parent, default_python=default_python, home=home
    )


def parse_inventory(
    text: str, filename: str, *, folder: Path, default_python: str, home: Path
) -> Inventory:
    """Inventory of a YAML ``text``; ``filename`` is for messages, relative paths start at
    ``folder``. Settings of a host: ``defaults``, then its groups, then its keys in ``hosts``.

    Where ``groups`` are given they say which hosts there are, and ``hosts`` only adjusts them;
    without groups, ``hosts`` is the list. Raises InventoryError with every problem found.
    """
    problems = Problems()
    root = compose(text, filename, problems)
    reading = _Reading(Reader(filename, problems), folder, home, default_python)
    inventory = None if root is None else reading.inventory(root)
    problems.raise_any(InventoryError, filename)
    if inventory is None:  # every path to None reports a problem
        raise AssertionError("an inventory was refused without a reason")
    return inventory


class _Reading:
    def __init__(self, reader: Reader, folder: Path, home: Path, default_python: str) -> None:
        self.reader = reader
        self.problems = reader.problems
        self.folder = folder
        self.home = home
        self.default_python = default_python
        self.declared: Dict[str, Location] = {}
        self.groups_of: Dict[str, List[str]] = {}
        self.ssh_configs: Dict[str, SshConfig] = {}

    def inventory(self, root: yaml.Node) -> Optional[Inventory]:
        reader = self.reader
        top = reader.entries(root, "the inventory", _TOP)
        defaults: Layer = {}
        if "ssh" in top:
            defaults.update(reader.layer({"ssh": top["ssh"]}, "the inventory"))
        if "defaults" in top:
            entries = reader.entries(top["defaults"][1], "`defaults`", HOST_KEYS)
            defaults.update(reader.layer(entries, "`defaults`"))
        groups = self.groups(top["groups"][1]) if "groups" in top else {}
        overrides = self.hosts(top["hosts"][1], "groups" in top) if "hosts" in top else []
        if not self.declared and not self.problems.found:
            reader.wrong(root, "the inventory names no host", "add e.g. `hosts: node[1-4]`")
        cluster = Path(reader.filename).stem
        if "cluster" in top:
            cluster = reader.text(top["cluster"][1], "`cluster`") or cluster
        hosts = [self.host(name, defaults, groups, overrides) for name in self.declared]
        whole = [host for host in hosts if host is not None]
        self.check_together(whole)
        job: Mapping[str, object] = {}
        locations: Mapping[Tuple[str, ...], Location] = {}
        if "job" in top:
            reader.entries(top["job"][1], "`job`")
            section = document(top["job"][1], reader.filename, self.problems)
            if section is not None and isinstance(section.value, dict):
                job, locations = section.value, section.locations
        notify = (
            read_notify(reader, top["notify"][1], self.folder, self.home) if "notify" in top else []
        )
        return Inventory(
            cluster=cluster,
            hosts=tuple(host for host in whole if SPARES not in host.groups),
            source=reader.filename,
            job=job,
            job_locations=locations,
            folder=str(self.folder),
            spares=tuple(host for host in whole if SPARES in host.groups),
            notify=tuple(notify),
        )

    def groups(self, node: yaml.Node) -> Dict[str, Layer]:
        """Layers of the groups; notes which hosts there are and their groups."""
        layers: Dict[str, Layer] = {}
        for group, (key, value) in self.reader.entries(node, "`groups`").items():
            if group == ALL or not group.replace("-", "_").isidentifier():
                self.reader.wrong(
                    key,
                    f"{shown(group)} cannot name a group",
                    "use letters, digits, `_` and `-`; `all` is every host",
                )
            entries = self.reader.entries(value, f"group `{group}`", ("hosts", *HOST_KEYS))
            if "hosts" in entries:
                names = self.reader.names(entries.pop("hosts")[1], f"`hosts` of group `{group}`")
                self.declare(names, group)
            elif isinstance(value, yaml.MappingNode):
                self.reader.wrong(key, f"group `{group}` has no `hosts`", "name its hosts")
            layers[group] = self.reader.layer(entries, f"group `{group}`")
        for group in layers:
            if group in self.declared:
                self.problems.add(
                    f"{shown(group)} names a host and a group", self.declared[group], "rename one"
                )
        return layers

    def declare(self, names: List[Tuple[str, Location]], group: str) -> None:
        for name, at in names:
            mine = self.groups_of.setdefault(name, [])
            if group in mine:
                self.problems.add(
                    f"host {shown(name)} is listed twice in group `{group}`", at, "remove one"
                )
                continue
            mine.append(group)
            self.declared.setdefault(name, at)
            if SPARES in mine and len(mine) > 1:
                other = next(g for g in mine if g != SPARES)
                self.problems.add(
                    f"host {shown(name)} is both in group `{SPARES}` and in `{other}`",
                    at,
                    "a spare host stands by; remove it from one of the groups",
                )

    def hosts(self, node: yaml.Node, grouped: bool) -> List[Tuple[List[str], Layer]]:
        """Layers of the keys of ``hosts:``, each with the names that it is for."""
        if not isinstance(node, yaml.MappingNode):
            if grouped:
                self.reader.wrong(
                    node,
                    "with `groups`, `hosts` must be a mapping from hosts to settings",
                    "list hosts under a group, e.g. `groups: {workers: {hosts: node[1-4]}}`",
                )
                return []
            self.declare_ungrouped(self.reader.names(node, "`hosts`"))
            return []
        layers = []
        for pattern, (key, value) in self.reader.entries(node, "`hosts`").items():
            names = self.reader.expanded(key, pattern)
            if grouped:
                self.check_grouped(key, names)
            else:
                self.declare_ungrouped(names)
            layer: Layer = {}
            if not (isinstance(value, yaml.ScalarNode) and value.value == ""):
                entries = self.reader.entries(value, f"host `{pattern}`", HOST_KEYS)
                layer = self.reader.layer(entries, f"host `{pattern}`")
            layers.append(([name for name, _ in names], layer))
        return layers

    def declare_ungrouped(self, names: List[Tuple[str, Location]]) -> None:
        for name, at in names:
            if name in self.declared:
                self.problems.add(
                    f"host {shown(name)} is listed twice, first in line {self.declared[name].line}",
                    at,
                    "remove one",
                )
            self.declared.setdefault(name, at)
            self.groups_of.setdefault(name, [])

    def check_grouped(self, key: yaml.Node, names: List[Tuple[str, Location]]) -> None:
        for name, _ in names:
            if name not in self.declared and self.reader.all_names_read:
                self.reader.wrong(
                    key,
                    f"host {shown(name)} is in no group",
                    "add it to the `hosts` of a group, or correct the name",
                )

    def host(
        self,
        name: str,
        defaults: Layer,
        groups: Mapping[str, Layer],
        overrides: List[Tuple[List[str], Layer]],
    ) -> Optional[Host]:
        own = self.overlay(name, [layer for names, layer in overrides if name in names], {})
        mine = [groups[group] for group in self.groups_of[name] if group in groups]
        layer = {**defaults, **self.overlay(name, mine, own), **own}
        return self.resolve(name, layer)

    def overlay(self, name: str, layers: List[Layer], above: Layer) -> Layer:
        """Layers of one rank laid together: they must not contradict each other, unless a layer
        ``above`` them decides."""
        together: Layer = {}
        for layer in layers:
            for key, setting in layer.items():
                other = together.setdefault(key, setting)
                if other.value != setting.value and key not in above:
                    self.problems.add(
                        f"host {shown(name)} gets `{key}` here and another value in line "
                        f"{other.at.line}",
                        setting.at,
                        "state it once, or for this host alone under `hosts`",
                    )
        return together

    def resolve(self, name: str, layer: Layer) -> Optional[Host]:
        found = len(self.problems.found)
        at = self.declared[name]
        for key in ("devices", "workdir", "device_target"):
            if key not in layer:
                self.problems.add(f"no `{key}` for host {shown(name)}", at, _MISSING[key])
        if len(self.problems.found) > found or any(s.value is None for s in layer.values()):
            return None
        connection = _value(layer, "connection", "ssh")
        way = self.route(name, layer, connection)
        if way is None:
            return None
        address, ssh = way
        server_id = _value(layer, "server_id", address)
        if len(server_id) > 64:
            self.problems.add(
                f"the name {shown(name)} is longer than 64 characters", at, "add a `server_id`"
            )
        self.check_devices(layer)
        return Host(
            name=name,
            address=SshAddress(address),
            server_id=ServerId(server_id),
            devices=_value(layer, "devices", ()),
            device_target=_value(layer, "device_target", ""),
            workdir=self.workdir(name, layer, connection),
            python=_value(
                layer, "python", self.default_python if connection == "local" else "python3"
            ),
            connection=connection,
            setup=_value(layer, "setup", ""),
            env={k[4:]: cast(str, s.value) for k, s in layer.items() if k.startswith("env.")},
            device_ips=_value(layer, "device_ips", ()),
            groups=tuple(self.groups_of[name]),
            ssh=ssh,
            shared_workdir=self.shared_workdir(name, layer, connection),
        )

    def route(self, name: str, layer: Layer, connection: str) -> Optional[Tuple[str, SshOptions]]:
        """Address and SSH options of a host; None after reporting a problem."""
        address = _value(layer, "address", name)
        said = Said(
            user=_value(layer, "ssh.user", None),
            port=_value(layer, "ssh.port", None),
            key=self.path(layer, "ssh.key"),
            known_hosts=self.path(layer, "ssh.known_hosts"),
            connect_timeout=_value(layer, "ssh.connect_timeout", None),
            jump=_value(layer, "ssh.jump", None),
        )
        try:
            config = self.ssh_config(layer) if connection == "ssh" else None
            return route(address, said, config)
        except RouteError as error:
            setting = layer.get("ssh.jump") or layer.get("ssh.config")
            at = setting.at if setting else self.declared[name]
            known = any(str(error) == problem.message for problem in self.problems.found)
            if not known:  # one file serves many hosts
                self.problems.add(str(error), at, error.hint)
            return None

    def ssh_config(self, layer: Layer) -> Optional[SshConfig]:
        text: Optional[str] = _value(layer, "ssh.config", None)
        if text is None or text == "false":
            return None
        path = str(self.home / ".ssh/config") if text == "true" else self.path(layer, "ssh.config")
        if path not in self.ssh_configs:
            self.ssh_configs[str(path)] = SshConfig(Path(str(path)), self.home)
        return self.ssh_configs[str(path)]

    def check_devices(self, layer: Layer) -> None:
        devices: Tuple[int, ...] = _value(layer, "devices", ())
        if _value(layer, "device_target", "") == "Ascend":
            unfit = unfit_for_910(devices)
            if unfit:
                self.problems.add(f"`devices`: {unfit[0]}", layer["devices"].at, unfit[1])
        ips: Tuple[DeviceIp, ...] = _value(layer, "device_ips", ())
        if ips and len(ips) != len(devices):
            self.problems.add(
                f"`device_ips` gives {len(ips)} addresses for {len(devices)} devices",
                layer["device_ips"].at,
                "give one for each device, in the order of `devices`",
            )

    def workdir(self, name: str, layer: Layer, connection: str) -> str:
        """Absolute work folder. ``~`` is the home folder here, so only local hosts may use it:
        the home folder of a remote user is not known before the host is asked."""
        setting = layer["workdir"]
        text = cast(str, setting.value).replace("{host}", name)
        if text == "~" or text.startswith("~/"):
            if connection != "local":
                self.problems.add(
                    f"`workdir` {shown(text)} starts with `~` on a host reached by ssh",
                    setting.at,
                    "write the folder as an absolute path",
                )
            text = str(self.home) + text[1:]
        if not text.startswith("/"):
            self.problems.add(
                f"`workdir` {shown(text)} is not absolute", setting.at, "write e.g. /data/glm2"
            )
        if ".." in text.split("/") or "{" in text or "}" in text:
            self.problems.add(
                f"`workdir` {shown(text)} contains `..` or braces",
                setting.at,
                "write a plain absolute path; only `{host}` is replaced",
            )
        return os.path.normpath(text)

    def shared_workdir(self, name: str, layer: Layer, connection: str) -> Optional[str]:
        """Where the controller sees the host's workdir; None where it does not."""
        setting = layer.get("shared_workdir")
        if setting is None:
            return None
        text = cast(str, setting.value).replace("{host}", name)
        if text == "true":
            return self.workdir(name, layer, connection)
        if ".." in text.split("/") or "{" in text or "}" in text:
            self.problems.add(
                f"`shared_workdir` {shown(text)} contains `..` or braces",
                setting.at,
                "write a plain absolute path; only `{host}` is replaced",
            )
        return os.path.normpath(text)

    def path(self, layer: Layer, key: str) -> Optional[str]:
        """A file of the controller: ``~`` is home, a relative path starts at the inventory."""
        text: Optional[str] = _value(layer, key, None)
        if text is None:
            return None
        if text.startswith("~/"):
            return str(self.home / text[2:])
        return os.path.normpath(self.folder / text)

    def check_together(self, hosts: List[Host]) -> None:
        """What must differ between hosts: server ids and device IPs."""
        self.unique("`server_id`", [(host.server_id, host.name) for host in hosts])
        ips = [(str(ip), host.name) for host in hosts for ip in host.device_ips]
        self.unique("device IP", ips)

    def unique(self, what: str, owners: List[Tuple[str, str]]) -> None:
        first: Dict[str, str] = {}
        for value, name in owners:
            if value in first:
                whom = f"hosts {first[value]} and {name}" if first[value] != name else name
                self.problems.add(
                    f"{what} {shown(value)} is given twice, for {whom}",
                    self.declared[name],
                    "each must be unique in the cluster",
                )
            first.setdefault(value, name)


_MISSING = {
    "devices": 'add e.g. `devices: "[0,8)"` to `defaults`',
    "workdir": "add e.g. `workdir: /data/glm2` to `defaults`",
    "device_target": "add `device_target: Ascend` or `device_target: CPU` to `defaults`",
}


def _value(layer: Layer, key: str, default: _T) -> _T:
    return cast(_T, layer[key].value) if key in layer else default
