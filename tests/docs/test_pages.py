"""Every page: its links lead somewhere, its commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Iterator, List, Set, Tuple

import click
import pytest

from docs.generate import parser_of
from orchestrator.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
_SPAN = re.compile(r"`([^`\n]+)`")
_PROSE = re.compile(r"\s{2,}|\s#|\s[|&;]|…|·")
"""Where a command line of a page ends and words about it begin."""


def names(paths: List[Path]) -> List[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def anchors(page: Path) -> Set[str]:
    """Those that GitHub gives the headings."""
    text = _FENCED.sub("", page.read_text("utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def code(text: str) -> Iterator[str]:
    """Lines of fenced blocks, and spans of code outside of them."""
    for block in _FENCED.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from _SPAN.findall(_FENCED.sub("", text))


def invocations(line: str, program: str) -> Iterator[List[str]]:
    """The words behind each mention of a program."""
    for rest in line.split(program)[1:]:
        if rest[:1].strip():  # part of a longer word, such as glm2-orch-1.0
            continue
        command = _PROSE.split(rest.strip())[0]
        try:
            yield shlex.split(command)
        except ValueError:  # a quote that a span cuts
            yield command.split()


def resolved(words: List[str]) -> Tuple[click.Command, List[str]]:
    """The command that words name, and what follows."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options(words: List[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        found = re.match(r"[\[({]?(--?[A-Za-z][\w-]*)", word)
        if found:
            yield found[1]


@pytest.mark.parametrize("name", names(PAGES))
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file) if file else page
        assert path.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{name}: {target}"


@pytest.mark.parametrize("name", names(PAGES))
def test_commands_and_options_of_glm2_orch_exist(name: str) -> None:
    for line in code((ROOT / name).read_text("utf-8")):
        for words in invocations(line, "glm2-orch"):
            if line == "glm2-orch sends":  # a line of a protocol
                continue
            command, rest = resolved(words)
            if command is cli and rest and re.fullmatch(r"[a-z][a-z-]+", rest[0]):
                pytest.fail(f"{name}: no command {rest[0]!r}: {line}")
            known = {"-h", "--help", "--version"}
            for parameter in command.params:
                known.update((*parameter.opts, *parameter.secondary_opts))
            for option in options(rest):
                assert option in known, f"{name}: {line}"


@pytest.mark.parametrize("name", names(PAGES))
def test_options_of_the_worker_exist(name: str) -> None:
    for line in code((ROOT / name).read_text("utf-8")):
        for words in invocations(line, "python -m glm2"):
            word = words[0] if words and not words[0].startswith("-") else ""
            if word in ("COMMAND", "…"):
                continue
            parser = parser_of(word)
            known = {text for action in parser._actions for text in action.option_strings}
            for option in options(words):
                assert option in known, f"{name}: {line}"


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    linked = {
        (ROOT / "docs" / target.partition("#")[0]).resolve() for target in _LINK.findall(index)
    }
    missing = [
        name for name in names(PAGES) if name.startswith("docs/") and ROOT / name not in linked
    ]
    assert missing == ["docs/README.md"]
