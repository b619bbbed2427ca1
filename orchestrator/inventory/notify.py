"""The ``notify:`` section of an inventory: who is told of a run's start, failure and end.

It names where secrets are, never the secrets themselves: a variable of the environment or a file.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

import yaml

from orchestrator.inventory.settings import Reader
from orchestrator.problems import nearest, shown

EVENTS = ("start", "failure", "recovery", "end")
WEBHOOKS = ("webhook", "dingtalk", "feishu", "wecom")
SIGNED = ("dingtalk", "feishu")
"""Those whose requests can be signed with a secret."""

_KEYS = ("to", "on", "name", "url_env", "url_file", "secret_env", "secret_file", "command")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_Entries = Mapping[str, Tuple[yaml.Node, yaml.Node]]


@dataclass(frozen=True)
class Secret:
    """Where a secret is: a variable of the environment, or a file (absolute). One of the two."""

    env: Optional[str] = None
    file: Optional[str] = None


@dataclass(frozen=True)
class Notification:
    """One receiver."""

    to: str
    """``webhook``, ``dingtalk``, ``feishu``, ``wecom`` or ``command``."""
    name: str
    """What it is called in messages and the journal."""
    on: Tuple[str, ...] = EVENTS
    url: Optional[Secret] = None
    secret: Optional[Secret] = None
    command: Tuple[str, ...] = ()
    """Program and arguments, run on the controller without a shell; the message is its input."""


def read_notify(reader: Reader, node: yaml.Node, folder: Path, home: Path) -> List[Notification]:
    """The receivers of the section at ``node``; what is wrong goes to the reader's problems."""
    if not isinstance(node, yaml.SequenceNode):
        reader.wrong(node, "`notify` must be a list", "write `- to: webhook` lines below it")
        return []
    found: List[Notification] = []
    for number, item in enumerate(node.value, 1):
        entries = dict(reader.entries(item, "an item of `notify`"))
        one = _Item(reader, item, entries, folder, home).notification(number)
        if one is not None:
            found.append(one)
    return found


class _Item:
    def __init__(
        self, reader: Reader, node: yaml.Node, entries: _Entries, folder: Path, home: Path
    ) -> None:
        self.reader = reader
        self.node = node
        self.entries = entries
        self.folder = folder
        self.home = home

    def notification(self, number: int) -> Optional[Notification]:
        before = len(self.reader.problems.found)
        self.check_keys()
        to = self.text("to")
        if "to" not in self.entries:
            self.reader.wrong(self.node, "an item of `notify` has no `to`", _choices())
        elif to is not None and to not in (*WEBHOOKS, "command"):
            at = self.entries["to"][1]
            self.reader.wrong(at, f"`to` {shown(to)} is not known", _choices())
        command = self.command(to)
        url, secret = self.secret("url"), self.secret("secret")
        if to in WEBHOOKS and url is None and len(self.reader.problems.found) == before:
            self.reader.wrong(
                self.node, f"no `url_env` or `url_file` for `to: {to}`", "say where its URL is kept"
            )
        if secret is not None and to not in SIGNED:
            self.reader.wrong(self.node, f"`to: {to}` takes no secret", "remove it")
        on = self.events()
        name = self.text("name") or f"{to} {number}"
        if to is None or len(self.reader.problems.found) > before:
            return None
        return Notification(to, name, on, url, secret, command)

    def check_keys(self) -> None:
        for key, (node, _) in self.entries.items():
            if key in ("url", "secret"):
                self.reader.wrong(
                    node,
                    f"`{key}` is a secret, and this file is read by many",
                    f"put it into a file of mode 600 and write `{key}_file: PATH`, or into a "
                    f"variable and write `{key}_env: NAME`",
                )
            elif key not in _KEYS:
                message = f"unknown key {shown(key)} in an item of `notify`"
                self.reader.wrong(node, message, nearest(key, _KEYS))

    def text(self, key: str) -> Optional[str]:
        entry = self.entries.get(key)
        return None if entry is None else self.reader.text(entry[1], f"`{key}`")

    def secret(self, what: str) -> Optional[Secret]:
        env, file = self.text(f"{what}_env"), self.text(f"{what}_file")
        if env is not None and file is not None:
            self.reader.wrong(
                self.node, f"both `{what}_env` and `{what}_file` are given", "use one"
            )
        elif env is not None:
            if _VARIABLE.fullmatch(env) is None:
                at = self.entries[f"{what}_env"][1]
                # Not repeated: somebody may have written the secret itself here.
                self.reader.wrong(at, f"`{what}_env` is no name of a variable", "e.g. OPS_WEBHOOK")
            return Secret(env=env)
        elif file is not None:
            return Secret(file=self.path(file))
        return None

    def command(self, to: Optional[str]) -> Tuple[str, ...]:
        entry = self.entries.get("command")
        if entry is None:
            if to == "command":
                self.reader.wrong(self.node, "`to: command` has no `command`", _COMMAND)
            return ()
        node = entry[1]
        if to != "command":
            self.reader.wrong(entry[0], f"`command` means nothing with `to: {to}`", "remove it")
            return ()
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.reader.wrong(node, "`command` must be a list: no shell reads it", _COMMAND)
            return ()
        words = [self.reader.text(word, "a word of `command`") or "" for word in node.value]
        if "/" in words[0]:
            words[0] = self.path(words[0])
        return tuple(words)

    def events(self) -> Tuple[str, ...]:
        entry = self.entries.get("on")
        if entry is None:
            return EVENTS
        node = entry[1]
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        chosen: Dict[str, None] = {}
        for item in items:
            text = self.reader.text(item, "`on`")
            if text is not None and text not in EVENTS:
                self.reader.wrong(item, f"`on` {shown(text)} is not one of {', '.join(EVENTS)}")
            elif text is not None:
                chosen[text] = None
        return tuple(chosen)

    def path(self, text: str) -> str:
        if text.startswith("~/"):
            return str(self.home / text[2:])
        return os.path.normpath(self.folder / text)


def _choices() -> str:
    return f"write `to:` {', '.join(WEBHOOKS)} or command"


_COMMAND = 'write e.g. `command: ["/usr/local/bin/page-us", "--team", "ml"]`'
