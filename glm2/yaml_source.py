"""A YAML file read with the line of each key, overrides applied, and typed access to its keys.

Every ConfigError from here names the key in full, its line, and close matches.
"""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from glm2.errors import ConfigError, UsageError

_REQUIRED = object()


class Source:
    """The values of one file, and where each key stands in it."""

    def __init__(self, name: str, values: Dict[str, Any], lines: Dict[str, int]) -> None:
        self.name = name
        self.values = values
        self.lines = lines
        self.overridden: List[str] = []
        """Keys whose value was given with ``--set``."""
        self.unused: List[str] = []
        """Keys that were accepted and have no effect, in full, filled by ``Section.ignore``."""

    def where(self, key: str) -> str:
        """``file:line: `` of a key, or of the nearest section around it; ``--set: `` if it was."""
        while key and key not in self.lines:
            if any(f"{path}.".startswith(f"{key}.") for path in self.overridden):
                return "--set: "
            key = key.rpartition(".")[0]
        return f"{self.name}:{self.lines[key]}: " if key else f"{self.name}: "


class Section:
    """The keys below one path. Each key is taken once; ``close`` refuses what is left."""

    def __init__(self, source: Source, path: str, values: Any) -> None:
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError(f"{source.where(path)}{path} must be a mapping of keys to values")
        self.source, self.path = source, path
        self.left = dict(values)
        self.known: List[str] = []

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def take(
        self,
        key: str,
        kind: type,
        default: Any = _REQUIRED,
        *,
        least: Optional[float] = None,
        above: Optional[float] = None,
        below: Optional[float] = None,
    ) -> Any:
        """The value of ``key`` as ``kind`` (bool, int, float, str or list), in its range."""
        self.known.append(key)
        if key not in self.left:
            if default is _REQUIRED:
                raise self.error(key, "is missing")
            return default
        value = self.left.pop(key)
        if value is None and default is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, f"must be {_KINDS[kind]}, not {value!r}")
        if kind is float and not math.isfinite(value):
            raise self.error(key, f"must be a finite number, not {value!r}")
        if least is not None and value < least:
            raise self.error(key, f"is {value}; at least {least}")
        if above is not None and value <= above:
            raise self.error(key, f"is {value}; above {above}")
        if below is not None and value >= below:
            raise self.error(key, f"is {value}; below {below}")
        return value

    def section(self, key: str) -> Section:
        """The section below ``key``; empty when the key is absent."""
        self.known.append(key)
        return Section(self.source, self.name(key), self.left.pop(key, None))

    def sections(self, key: str) -> List[Section]:
        """The sections of a list below ``key``."""
        items = self.take(key, list, [])
        return [Section(self.source, f"{self.name(key)}.{i}", item) for i, item in enumerate(items)]

    def ignore(self, *keys: str) -> None:
        """Accept keys that have no effect here; the user is told their names."""
        for key in keys:
            self.known.append(key)
            if key in self.left:
                del self.left[key]
                self.source.unused.append(self.name(key))

    def ignore_rest(self) -> None:
        """Accept all that is left as having no effect."""
        self.ignore(*list(self.left))

    def close(self) -> None:
        """Refuse keys that nobody took."""
        for key in self.left:
            names = sorted(set(self.known))
            near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.6)
            raise ConfigError(
                f"{self.source.where(self.name(str(key)))}unknown key {self.name(str(key))}",
                hint=f"did you mean {' or '.join(near)}?"
                if near
                else f"known here: {', '.join(names)}",
            )

    def error(self, key: str, problem: str, hint: str = "") -> ConfigError:
        """A ConfigError that names the key and its line."""
        return ConfigError(
            f"{self.source.where(self.name(key))}{self.name(key)} {problem}", hint=hint
        )


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> Source:
    """Read a file and apply ``a.b=value`` overrides (values are YAML; list items by number)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        lines: Dict[str, int] = {}
        _note_lines(yaml.compose(text, Loader=_Loader), "", path.name, lines)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not valid YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path.name}: a section holds itself, by an alias") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} must be a mapping of keys to values")
    source = Source(path.name, values, lines)
    for override in overrides:
        key = _apply(values, override)
        lines.pop(key, None)
        source.overridden.append(key)
    return source


def known_type(section: Section, default: str, *known: str) -> None:
    """Refuse a ``type`` that is not one of ``known``; absent, it is ``default``."""
    kind = section.take("type", str, default)
    if kind not in known:
        raise section.error("type", f"is {kind!r}", f"glm2 has {' and '.join(known)}")


def parse_value(text: str) -> Any:
    """A YAML value as the file itself would read it."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-5`` as a number and ``None`` as null, as the guide's files do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])

_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
}


def _note_lines(node: Optional[yaml.Node], path: str, file: str, lines: Dict[str, int]) -> None:
    """Record the line of each key below ``node``; a key written twice is an error."""
    items: List[Tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{file}:{key.start_mark.line + 1}: a key must be a word")
            if key.value in seen:
                raise ConfigError(
                    f"{file}:{key.start_mark.line + 1}: the key {key.value} is there twice",
                    hint="remove one of the two",
                )
            seen.add(key.value)
            items.append((str(key.value), key, value))
    elif isinstance(node, yaml.SequenceNode):
        items = [(str(i), item, item) for i, item in enumerate(node.value)]
    for name, key, value in items:
        full = f"{path}.{name}" if path else name
        lines[full] = key.start_mark.line + 1
        _note_lines(value, full, file, lines)


def _apply(values: Dict[str, Any], override: str) -> str:
    """Set one value; returns its key in full."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"--set {override}: expected KEY=VALUE",
            hint="for example --set runner_config.epochs=2",
        )
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not YAML: {_one_line(error)}") from error
    here: Any = values
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise UsageError(
                    f"--set {override}: {'.'.join(parts[:i])} is a list of {len(here)} items",
                    hint="name an item by its number, from 0",
                )
            key: Any = int(part)
        elif isinstance(here, dict):
            key = part
            if not last and here.get(key) is None:
                here[key] = {}
        else:
            raise UsageError(f"--set {override}: {'.'.join(parts[:i])} is a value, not a section")
        if last:
            here[key] = value
        else:
            here = here[key]
    return ".".join(parts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
