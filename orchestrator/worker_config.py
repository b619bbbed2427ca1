"""The worker's YAML configuration: found by name or path, and changed by ``--set``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, cast

from orchestrator.errors import JobError, Location, UsageError
from orchestrator.problems import Problems, nearest, shown
from orchestrator.yaml_positions import Path as KeyPath
from orchestrator.yaml_positions import load


@dataclass(frozen=True)
class WorkerConfig:
    """The worker's YAML after ``--set``: its values, and where each one stood."""

    name: str
    """Name of a shipped configuration, or path of the file, as it was given."""
    values: Mapping[str, object]
    locations: Mapping[KeyPath, Location] = field(default_factory=dict)

    def place(self, *path: str) -> Optional[Location]:
        """Place of a value: file:line:column, or the ``--set`` that gave it."""
        return self.locations.get(path)


def load_config(name: str, *, config_dir: Optional[Path], folder: Path) -> WorkerConfig:
    """The worker configuration ``name``: a path (it has a ``/`` or ends in .yaml; relative ones
    start at ``folder``), or the name of a shipped one in ``config_dir``. Raises JobError."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = folder / name
    else:
        shipped = sorted(p.stem for p in config_dir.glob("*.yaml")) if config_dir else []
        if name not in shipped or config_dir is None:
            raise JobError(
                f"there is no configuration named {shown(name)}",
                hint=f"{nearest(name, shipped)}; or give the path of a YAML file".lstrip("; "),
            )
        path = config_dir / f"{name}.yaml"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise JobError(
            f"cannot read the configuration {path}: {error.strerror}", hint="check --config"
        ) from error
    return parse_config(text, str(path), name)


def parse_config(text: str, filename: str, name: str) -> WorkerConfig:
    """The worker configuration of a YAML ``text``. All keys are kept: the worker judges them."""
    problems = Problems()
    document = load(text, filename, problems)
    problems.raise_any(JobError, filename)
    values = document.value if document else None
    if document is None or not isinstance(values, dict):
        raise JobError(
            "a worker configuration must be a mapping",
            location=Location(filename, 1, 1),
            hint="write `key: value` lines",
        )
    return WorkerConfig(name, values, document.locations)


def set_value(config: WorkerConfig, key: str, value: object, source: Location) -> WorkerConfig:
    """``config`` with the value at the dotted ``key`` replaced, missing mappings made on the way.

    A number names an item of a list. Where the YAML has aliases, all places that share a mapping
    see the change. Raises JobError when the way leads through a value that is no mapping.
    """
    path = tuple(key.split("."))
    if not all(path):
        raise UsageError(f"{source.file}: a part of the key is empty", hint="write e.g. a.b=1")
    values = _thaw(config.values)
    at = values
    for depth, part in enumerate(path[:-1], start=1):
        inner = _child(at, part)
        if inner is None:
            inner = {}
            _store(at, part, inner, source, path[: depth - 1])
        if not isinstance(inner, (dict, list)):
            before = ".".join(path[:depth])
            where = config.locations.get(path[:depth])
            raise JobError(
                f"{source.file}: `{before}` is the value {shown(str(inner))}, not a mapping"
                + (f" ({where})" if where else ""),
                hint=f"set `{before}` itself, or correct the key",
            )
        at = inner
    _store(at, path[-1], value, source, path[:-1])
    inside = len(path)
    kept = {p: place for p, place in config.locations.items() if p[:inside] != path}
    return WorkerConfig(config.name, cast("Dict[str, object]", values), {**kept, path: source})


def _thaw(values: Mapping[str, object]) -> object:
    """A copy to be changed, in which what was shared is still shared."""
    copies: Dict[int, object] = {}

    def copy(value: object) -> object:
        if id(value) in copies:
            return copies[id(value)]
        if isinstance(value, dict):
            mapping: Dict[object, object] = {}
            copies[id(value)] = mapping
            mapping.update((key, copy(item)) for key, item in value.items())
            return mapping
        if isinstance(value, list):
            items: List[object] = []
            copies[id(value)] = items
            items.extend(copy(item) for item in value)
            return items
        return value

    return copy(values)


def _child(holder: object, part: str) -> object:
    if isinstance(holder, dict):
        return holder.get(part)
    if isinstance(holder, list) and part.isdecimal() and int(part) < len(holder):
        return holder[int(part)]
    return None


def _store(holder: object, part: str, value: object, source: Location, path: KeyPath) -> None:
    if isinstance(holder, dict):
        holder[part] = value
    elif isinstance(holder, list) and part.isdecimal() and int(part) < len(holder):
        holder[int(part)] = value
    else:
        size = len(holder) if isinstance(holder, list) else 0
        raise JobError(
            f"{source.file}: `{'.'.join(path)}` is a list of {size} items and has no {shown(part)}",
            hint="name an item by its number, from 0",
        )
