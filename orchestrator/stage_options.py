"""``stage:`` of a job: which local files the hosts need, and how the job names them there.

::

    stage:
      - {from: ./AdvertiseGen, to: data}                staged:data/train.json in the worker YAML
      - {from: glm2_6b.ckpt, to: /data/glm2_6b.ckpt}    or at a path of the hosts' own
      - ./mindformers                                   staged:mindformers

or ``stage: {encrypt: true, files: [...]}``: everything over SSH, from here, to each host.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from orchestrator.problems import nearest, shown

PREFIX = "staged:"
"""``staged:NAME`` or ``staged:NAME/path`` stands for a staged file or folder."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = ("from", "to", "exclude")


@dataclass(frozen=True)
class StageItem:
    """One file or folder of this machine that all hosts get."""

    source: str
    """Absolute path here."""
    name: str
    place: Optional[str] = None
    """Absolute path on the hosts, made a link to what was staged; None: only by its name."""
    exclude: Tuple[str, ...] = ()
    """Patterns (``*.tmp``, ``.git``) of names that are left out."""
    digest: str = ""
    """Name of the content; empty until the files were read."""
    file: str = ""
    """Name of the file, when the source is one; empty for a folder."""

    def on_host(self, workdir: str) -> str:
        """Its path on a host."""
        path = f"{workdir.rstrip('/')}/staged/{self.digest}/content"
        return f"{path}/{self.file}" if self.file else path


@dataclass(frozen=True)
class Stage:
    """All that is staged. ``encrypt``: no host passes anything on to another."""

    items: Tuple[StageItem, ...] = ()
    encrypt: bool = False


class StageOptionError(ValueError):
    """``str(error)`` says what is wrong, ``hint`` what to write, ``path`` where in ``stage:``."""

    def __init__(self, message: str, hint: str, path: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.path = tuple(path)


def parse_stage(value: object, folder: str) -> Stage:
    """The value of ``stage:``; relative sources start at ``folder``. Raises StageOptionError."""
    encrypt: object = False
    at: Tuple[str, ...] = ()
    if isinstance(value, dict):
        for key in value:
            if key not in ("files", "encrypt"):
                raise StageOptionError(
                    f"unknown key {shown(str(key))} in `stage`",
                    nearest(str(key), ("files", "encrypt")),
                )
        encrypt, value, at = value.get("encrypt", False), value.get("files"), ("files",)
        if not isinstance(encrypt, bool):
            raise StageOptionError(
                "`encrypt` is neither true nor false", "write true", ("encrypt",)
            )
    if not isinstance(value, list):
        raise StageOptionError(
            "`stage` must be a list of files", "write `- {from: ./data, to: data}` lines", at
        )
    items: List[StageItem] = []
    for number, entry in enumerate(value):
        path = (*at, str(number))
        item = _item(entry, folder, path)
        if any(item.name == other.name for other in items):
            raise StageOptionError(
                f"{shown(item.name)} is staged twice", "give one of them another `to:`", path
            )
        items.append(item)
    return Stage(tuple(items), bool(encrypt))


def find_item(stage: Stage, text: str) -> Optional[Tuple[StageItem, str]]:
    """The item that ``staged:NAME/rest`` names, and the rest; None for any other text.

    Raises StageOptionError when nothing is staged under that name, or the rest leaves it.
    """
    if not text.startswith(PREFIX):
        return None
    name, _, rest = text[len(PREFIX) :].partition("/")
    item = next((item for item in stage.items if item.name == name), None)
    if item is None:
        names = [item.name for item in stage.items]
        hint = nearest(name, names) if names else "add a `stage:` section to the job"
        raise StageOptionError(f"{shown(text)}: nothing is staged as {shown(name)}", hint)
    if ".." in rest.split("/"):
        raise StageOptionError(f"{shown(text)} leaves what is staged", "write it without `..`")
    if rest and item.file:
        raise StageOptionError(f"{shown(text)}: {shown(name)} is one file", f"write {PREFIX}{name}")
    return item, rest


def _item(entry: object, folder: str, path: Tuple[str, ...]) -> StageItem:
    if isinstance(entry, str):
        entry = {"from": entry}
    if not isinstance(entry, dict):
        raise StageOptionError("it is no mapping", "write {from: ./data, to: data}", path)
    for key in entry:
        if key not in _KEYS:
            raise StageOptionError(
                f"unknown key {shown(str(key))} in `stage`", nearest(str(key), _KEYS), path
            )
    source = entry.get("from")
    if not isinstance(source, str) or not source.strip():
        raise StageOptionError("`from` is missing", "name a file or folder of this machine", path)
    source = os.path.normpath(os.path.join(folder, os.path.expanduser(source)))
    exclude = entry.get("exclude", [])
    if not isinstance(exclude, list) or not all(isinstance(one, str) for one in exclude):
        raise StageOptionError("`exclude` must be a list of patterns", "write ['*.tmp']", path)
    to = entry.get("to", os.path.basename(source))
    if not isinstance(to, str):
        raise StageOptionError("`to` must be text", "write a name, or an absolute path", path)
    place = None
    name = to
    if to.startswith("/"):
        place, name = os.path.normpath(to), os.path.basename(os.path.normpath(to))
    if _NAME.fullmatch(name) is None or (place is not None and ".." in to.split("/")):
        raise StageOptionError(
            f"`to` {shown(to)} is neither a name nor a plain absolute path",
            "a name has letters, digits, `.`, `_`, `-`",
            path,
        )
    return StageItem(source, name, place, tuple(exclude))
