"""The manual page, made from the commands themselves, so that it is never out of date."""

from __future__ import annotations

import re
from typing import Iterator, List, Tuple

import click

from orchestrator.cli.completion import whole_cli

_EXIT = (
    ("0", "success"),
    ("1", "a bug of glm2-orch"),
    ("2", "the command line is wrong"),
    ("3", "an inventory, configuration, rank table or plan is wrong"),
    ("4", "a host or this machine is not ready; the preflight failed"),
    ("5", "a host could not be reached or refused us"),
    ("6", "the job failed"),
    ("7", "the job hung, or a time limit passed"),
    ("8", "the job was stopped on request"),
    ("9", "devices or a run are held by another run or controller"),
    ("10", "a checkpoint is incomplete, corrupt or inconsistent"),
    ("11", "some of the work succeeded and some did not"),
    ("130, 143", "the command itself was interrupted or terminated"),
)
_ENVIRONMENT = (
    ("GLM2_ORCH_HOME", "folder of all runs, schedules and quarantines; default: the state folder"),
    ("NO_COLOR, CLICOLOR=0", "no colours"),
)


@click.command()
def manual() -> None:
    """Print the manual page: glm2-orch manual | man -l -"""
    from importlib.metadata import version

    click.echo(page(whole_cli(), version("glm2-orch")), nl=False)


def page(cli: click.Group, version: str) -> str:
    """The page in roff, for ``man``."""
    lines = [
        f'.TH GLM2-ORCH 1 "" "glm2-orch {version}" "User Commands"',
        ".SH NAME",
        r"glm2-orch \- train ChatGLM2 with MindSpore on many Ascend servers",
        ".SH SYNOPSIS",
        r".B glm2-orch",
        r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *_prose(cli.help or ""),
        ".SH COMMANDS",
    ]
    for words, command in _leaves(cli, []):
        lines += _command(" ".join(["glm2-orch", *words]), command)
    lines += [".SH EXIT STATUS", *_pairs(_EXIT), ".SH ENVIRONMENT", *_pairs(_ENVIRONMENT)]
    return "\n".join(lines) + "\n"


def _leaves(group: click.Group, before: List[str]) -> Iterator[Tuple[List[str], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield [*before, name], command
            yield from _leaves(command, [*before, name])
        else:
            yield [*before, name], command


def _command(title: str, command: click.Command) -> List[str]:
    context = click.Context(command, info_name=title)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f".SS {_text(title)}", rf"\fB{_text(title)}\fR {_text(usage)}", ".PP"]
    lines += _prose(command.help or "")
    for parameter in command.params:
        if isinstance(parameter, click.Argument):  # the text above says what it is
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", rf"\fB{_text(record[0])}\fR", _text(record[1]) or r"\&"]
    return lines


def _prose(text: str) -> List[str]:
    """Paragraphs of a docstring; those marked ``\\b`` keep their lines."""
    lines: List[str] = []
    for paragraph in re.split(r"\n\s*\n", _clean(text)):
        rows = paragraph.split("\n")
        if rows[0].strip() == "\b":
            lines += [".nf", *(_text(row) for row in rows[1:]), ".fi", ".PP"]
        else:
            lines += [_text(" ".join(row.strip() for row in rows)), ".PP"]
    return lines[:-1]


def _clean(text: str) -> str:
    import inspect

    return inspect.cleandoc(text).partition("\f")[0]


def _pairs(pairs: Tuple[Tuple[str, str], ...]) -> List[str]:
    return [row for name, said in pairs for row in (".TP", rf"\fB{_text(name)}\fR", _text(said))]


def _text(text: str) -> str:
    """Plain text in roff: no line of it is a request, no backslash an escape."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
