"""The run folder on a host: where each file is, and how small JSON files are read and replaced."""

from __future__ import annotations

import os

from .light import dumps, loads

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    Json = Dict[str, Any]
else:
    Json = dict


class RunFolder:
    """``<workdir>/runs/<run id>``, absolute."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def spec(self) -> str:
        return os.path.join(self.path, "spec.json")

    @property
    def journal(self) -> str:
        return os.path.join(self.path, "journal.jsonl")

    @property
    def heartbeat(self) -> str:
        return os.path.join(self.path, "heartbeat.json")

    @property
    def lock(self) -> str:
        return os.path.join(self.path, "supervisor.lock")

    @property
    def supervisor_log(self) -> str:
        """Standard output and error of the supervisor itself; empty unless something is wrong."""
        return os.path.join(self.path, "supervisor.log")

    def process(self, name: str) -> str:
        return os.path.join(self.path, "ranks", name)

    def stdout(self, name: str) -> str:
        return os.path.join(self.process(name), "stdout.log")

    def exit(self, name: str) -> str:
        return os.path.join(self.process(name), "exit.json")


def append_only(path: str) -> int:
    """Open ``path`` for appending, made when missing, readable by its owner only."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def read_json(path: str) -> Optional[Json]:
    """The object in ``path``; None when there is none, or only half of one."""
    try:
        with open(path, "rb") as file:
            value = loads(file.read().decode("utf-8", "replace"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def replace_json(path: str, value: Json) -> None:
    """Write ``value`` so that a reader sees the old file or the new one, never a part."""
    temporary = path + ".new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(dumps(value))
    os.replace(temporary, path)


def overwrite_json(path: str, value: Json) -> None:
    """Write ``value`` into the blocks the file already has, for a disk without a free one.

    Not atomic: readers may see half of it, and read_json then says None.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        data = dumps(value)
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
