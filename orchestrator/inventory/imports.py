"""Hosts from what people have already: a plain list, the guide's ``IP_LIST=(…)`` of bash, or an
inventory of Ansible (INI or YAML). The text is only read; nothing in it is ever run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import Dict, List, Mapping, Optional, Tuple

from orchestrator.errors import InventoryError, Location
from orchestrator.inventory.patterns import PatternError, expand
from orchestrator.problems import Problems, nearest, shown
from orchestrator.yaml_positions import Document, load

WORKERS = "workers"
"""The group of hosts that are in none."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_ARRAY = re.compile(
    r"^[ \t]*(?:export[ \t]+|declare[ \t]+-a[ \t]+|local[ \t]+)?"
    r"([A-Za-z_][A-Za-z0-9_]*)=\(([^)]*)\)",
    re.MULTILINE,
)
_SECTION = re.compile(r"^\s*\[[A-Za-z_][^\]=]*\]\s*(?:[#;].*)?$", re.MULTILINE)
_YAML = re.compile(r"^[A-Za-z_][\w-]*:\s*(?:#.*)?$", re.MULTILINE)
_SLOTS = re.compile(r"slots=\d+")
_RANGE = re.compile(r"\[(\d+):(\d+)\]")
_ANSIBLE = {
    "ansible_host": "address",
    "ansible_ssh_host": "address",
    "ansible_user": "user",
    "ansible_ssh_user": "user",
    "ansible_port": "port",
    "ansible_ssh_port": "port",
    "ansible_ssh_private_key_file": "key",
}


@dataclass(frozen=True)
class ImportedHost:
    """One host, and how it is reached where the text says so."""

    name: str
    groups: Tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of ``address``, ``user``, ``port`` and ``key``."""


def import_hosts(text: str, filename: str) -> Tuple[ImportedHost, ...]:
    """The hosts that ``text`` names, in its order; its form is told from the text.

    Raises InventoryError with the place of what cannot be understood.
    """
    if _ARRAY.search(text):
        found = _bash(text, filename)
    elif _SECTION.search(text):
        found = _Ini(filename).hosts(text)
    elif _YAML.search(text) or text.lstrip().startswith(("---", "{")):
        found = _Yaml(filename).hosts(text)
    else:
        found = _plain(text, filename)
    if not found:
        raise InventoryError(
            "it names no host",
            hint="give a list of hosts, a bash file with IP_LIST=(…), or an inventory of Ansible",
            location=Location(filename),
        )
    return tuple(found.values())


_Hosts = Dict[str, ImportedHost]


def _plain(text: str, filename: str) -> _Hosts:
    hosts: _Hosts = {}
    for number, line in enumerate(text.splitlines(), 1):
        place = Location(filename, number)
        for item in re.split(r"[,\s]+", line.partition("#")[0].strip()):
            if not item or _SLOTS.fullmatch(item):  # slots: a hostfile of MPI
                continue
            user, _, rest = _RANGE.sub(r"[\1-\2]", item).rpartition("@")
            name, _, port = rest.partition(":")
            settings = {key: value for key, value in (("user", user), ("port", port)) if value}
            for one in _names(name, place):
                _add(hosts, ImportedHost(one, (), settings), place)
    return hosts


def _bash(text: str, filename: str) -> _Hosts:
    """The array ``IP_LIST``, or the only array there is."""
    arrays = {match[1]: match for match in _ARRAY.finditer(text)}
    match = arrays.get("IP_LIST") or next(iter(arrays.values()))
    if "IP_LIST" not in arrays and len(arrays) > 1:
        raise InventoryError(
            f"it has {len(arrays)} arrays: {', '.join(arrays)}",
            hint="call the one with the hosts IP_LIST",
            location=Location(filename),
        )
    hosts: _Hosts = {}
    first = text.count("\n", 0, match.start(2)) + 1
    for number, line in enumerate(match[2].split("\n"), first):
        place = Location(filename, number)
        for item in _shell_words(line.replace(",", " "), place):
            for name in _names(item, place):
                _add(hosts, ImportedHost(name), place)
    return hosts


def _shell_words(line: str, place: Location) -> List[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise InventoryError(str(error), hint="balance the quotes", location=place) from None


class _Ini:
    """Ansible's INI: sections of hosts, ``:vars`` and ``:children``."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.found: _Hosts = {}
        self.variables: Dict[str, Dict[str, str]] = {}
        self.children: Dict[str, List[str]] = {}

    def hosts(self, text: str) -> _Hosts:
        section, kind = "", "hosts"
        for number, line in enumerate(text.splitlines(), 1):
            place = Location(self.filename, number)
            line = line.strip()
            if not line or line[0] in "#;":
                continue
            if line.startswith("[") and _SECTION.match(line):
                section, _, kind = line[1 : line.index("]")].partition(":")
                kind = kind or "hosts"
                if kind not in ("hosts", "vars", "children"):
                    raise InventoryError(
                        f"a section [{section}:{shown(kind)[1:-1]}] is not known to Ansible",
                        hint="write [group], [group:vars] or [group:children]",
                        location=place,
                    )
            elif kind == "vars":
                key, _, value = line.partition("=")
                _take(self.variables.setdefault(section, {}), key.strip(), value.strip(), place)
            elif kind == "children":
                self.children.setdefault(section, []).append(line.split()[0])
            else:
                self.host(section, line, place)
        return _with_group_settings(self.found, self.variables, self.children)

    def host(self, section: str, line: str, place: Location) -> None:
        first, *rest = _shell_words(line, place)
        settings: Dict[str, str] = {}
        for word in rest:
            key, _, value = word.partition("=")
            _take(settings, key, value, place)
        name, _, port = first.partition(":") if "[" not in first else (first, "", "")
        if port:
            settings["port"] = port
        for one in _names(name, place):
            _add(self.found, ImportedHost(one, _group(section), settings), place, again=True)


class _Yaml:
    """Ansible's YAML: groups with ``hosts``, ``vars`` and ``children``."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.found: _Hosts = {}
        self.variables: Dict[str, Dict[str, str]] = {}
        self.children: Dict[str, List[str]] = {}

    def hosts(self, text: str) -> _Hosts:
        problems = Problems()
        document = load(text, self.filename, problems)
        problems.raise_any(InventoryError, self.filename)
        assert document is not None, "load says why it gives none"
        for name, content in self.mapping(document, document.value, ()).items():
            self.group(document, name, content, (name,))
        return _with_group_settings(self.found, self.variables, self.children)

    def group(self, document: Document, name: str, content: object, path: Tuple[str, ...]) -> None:
        parts = self.mapping(document, content, path)
        for key in parts:
            if key not in ("hosts", "vars", "children"):
                raise InventoryError(
                    f"group {shown(name)} has an unknown key {shown(key)}",
                    hint=nearest(key, ("hosts", "vars", "children")),
                    location=document.place((*path, key)),
                )
        for key, value in self.mapping(document, parts.get("vars"), (*path, "vars")).items():
            place = self.place(document, (*path, "vars", key))
            _take(self.variables.setdefault(name, {}), key, value, place)
        at = (*path, "hosts")
        for pattern, variables in self.mapping(document, parts.get("hosts"), at).items():
            place = self.place(document, (*at, pattern))
            settings: Dict[str, str] = {}
            for key, value in self.mapping(document, variables, (*at, pattern)).items():
                _take(settings, key, value, place)
            for one in _names(pattern, place):
                _add(self.found, ImportedHost(one, _group(name), settings), place, again=True)
        at = (*path, "children")
        for child, inside in self.mapping(document, parts.get("children"), at).items():
            self.children.setdefault(name, []).append(child)
            self.group(document, child, inside, (*at, child))

    def mapping(
        self, document: Document, value: object, path: Tuple[str, ...]
    ) -> Mapping[str, object]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise InventoryError(
                f"{shown('.'.join(path) or 'the file')} must be a mapping",
                hint="write it as Ansible does: all: {hosts: {node1: {ansible_host: 10.0.0.1}}}",
                location=self.place(document, path),
            )
        return {str(key): item for key, item in value.items()}

    def place(self, document: Document, path: Tuple[str, ...]) -> Location:
        return document.place(path) or Location(self.filename)


def _with_group_settings(
    hosts: _Hosts, variables: Mapping[str, Mapping[str, str]], children: Mapping[str, List[str]]
) -> _Hosts:
    """Settings of groups, those of parents below those of children, below the host's own."""

    def inherited(group: str, seen: Tuple[str, ...] = ()) -> Dict[str, str]:
        above: Dict[str, str] = {}
        for parent, below in children.items():
            if group in below and parent not in seen:
                above.update(inherited(parent, (*seen, group)))
        return {**above, **variables.get(group, {})}

    def settled(host: ImportedHost) -> ImportedHost:
        settings = dict(variables.get("all", {}))
        for group in host.groups or ("ungrouped",):
            settings.update(inherited(group))
        return replace(host, settings={**settings, **host.settings})

    return {name: settled(host) for name, host in hosts.items()}


def _group(name: str) -> Tuple[str, ...]:
    return () if name in ("", "all", "ungrouped") else (name.replace(".", "_"),)


def _take(settings: Dict[str, str], key: str, value: object, place: Location) -> None:
    """Keep a variable of Ansible that says how a host is reached; others are not for us."""
    ours = _ANSIBLE.get(key)
    if ours is None or value is None:
        return
    text = str(value).strip("\"'")
    if "{{" in text:
        raise InventoryError(
            f"{key} is a template of Ansible, {shown(text)}",
            hint="write the value itself; templates are not run here",
            location=place,
        )
    settings[ours] = text


def _names(pattern: str, place: Location) -> List[str]:
    """Names of a pattern of ours, or of Ansible's (``node[01:12]``)."""
    try:
        names = expand(_RANGE.sub(r"[\1-\2]", pattern))
    except PatternError as error:
        raise InventoryError(
            f"host pattern {shown(pattern)}: {error}",
            hint='write e.g. "192.168.0.[0-11]" or node[01:12]',
            location=place,
        ) from None
    for name in names:
        if _NAME.fullmatch(name) is None:
            hint = "letters, digits, `.`, `_` and `-`, starting with a letter or digit"
            if set(name) <= {".", "…"}:
                hint = 'name every host, or give the range: --hosts "192.168.0.[0-11]"'
            raise InventoryError(f"{shown(name)} is no host name", hint=hint, location=place)
    return names


def _add(hosts: _Hosts, host: ImportedHost, place: Location, *, again: bool = False) -> None:
    """Add a host; ``again``: another group may name it a second time."""
    known: Optional[ImportedHost] = hosts.get(host.name)
    if known is None:
        hosts[host.name] = host
        return
    if not again or set(host.groups) <= set(known.groups):
        raise InventoryError(
            f"host {shown(host.name)} is listed twice", hint="remove one", location=place
        )
    groups: Tuple[str, ...] = (*known.groups, *host.groups)
    hosts[host.name] = ImportedHost(host.name, groups, {**known.settings, **host.settings})
