"""The pages of ``docs/reference/``, made from the code: ``python -m docs.generate`` writes them.

``pages()`` returns them by name; a test compares them with the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple
from unittest.mock import patch

import click

import glm2.__main__ as worker
from docs.markdown import code_of, field_docs, paragraphs, table
from docs.worker_yaml import worker_yaml
from orchestrator import errors, job, recovery_options, stage_options, watch_options
from orchestrator.cli.main import cli
from orchestrator.inventory import model, notify, read
from orchestrator.inventory import settings as host_settings
from orchestrator.job.section import KEYS
from orchestrator.runs import layout

FOLDER = Path(__file__).parent / "reference"
_MADE = "<!-- Made by `python -m docs.generate`; a test compares it with the code. -->"


def pages() -> Dict[str, str]:
    """File name -> Markdown."""
    made = {
        "commands.md": _commands(),
        "worker-commands.md": _worker_commands(),
        "exit-statuses.md": _statuses(),
        "inventory.md": _inventory(),
        "worker-yaml.md": worker_yaml(),
        "run-files.md": _run_files(),
    }
    return {name: "\n".join([_MADE, *lines]).rstrip() + "\n" for name, lines in made.items()}


def leaves(group: click.Group, words: Tuple[str, ...]) -> Iterator[Tuple[str, click.Command]]:
    """Every command that can be run, with its words; hidden ones too."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield " ".join((*words, name)), command
            yield from leaves(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


# Commands


def _commands() -> List[str]:
    lines = ["# Commands of glm2-orch", "", paragraphs(cli.help or ""), ""]
    shown = [(name, one) for name, one in leaves(cli, ("glm2-orch",)) if not one.hidden]
    for name, command in shown:
        lines += [f"## {name}", "", *_command(name, command)]
    return lines


def _command(name: str, command: click.Command) -> List[str]:
    context = click.Context(command, info_name=name)
    lines = ["```", f"{name} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
    lines += [paragraphs(command.help or ""), ""]
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            rows.append((f"`{record[0]}`", record[1]))
    return lines + table(("option", "meaning"), rows)


def _worker_commands() -> List[str]:
    lines = [
        "# Commands of the worker",
        "",
        "`python -m glm2` is what the ranks run. It can be used by itself, too.",
        "",
    ]
    for word in ("", "check", "describe", "sample-data", "convert", "export", "infer", "scheduler"):
        parser = parser_of(word)
        lines += [f"## {parser.prog}", "", parser.description or "", ""]
        rows = []
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            value = action.metavar or "|".join(map(str, action.choices or ()))
            names = ", ".join(action.option_strings)
            needed = "; required" if action.required else ""
            rows.append((f"`{names} {value or ''}".strip() + "`", (action.help or "") + needed))
        lines += table(("option", "meaning"), rows)
    return lines


def parser_of(word: str) -> argparse.ArgumentParser:
    """The parser with which the worker reads the options of a command."""
    found: List[argparse.ArgumentParser] = []

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise SystemExit

    with patch.object(argparse.ArgumentParser, "parse_args", caught):
        try:
            worker.main([word] if word else [])
        except SystemExit:
            return found[0]
    raise AssertionError(f"{word} parsed nothing")


# Exit statuses


def _statuses() -> List[str]:
    lines = [
        "# Exit statuses",
        "",
        "Each error is of one class. `code` is what `-o json` prints; it does not change.",
        "",
    ]
    rows = [
        ("0", "", "success"),
        ("1", "", "a bug of glm2-orch; the lines above say where"),
        *sorted((str(e.exit_status), f"`{e.code}`", _first(e)) for e in _errors(errors.OrchError)),
        ("130, 143", "", "the command was interrupted (Ctrl-C, SIGTERM); a run goes on"),
        ("141", "", "the reader of the output has gone"),
    ]
    rows.sort(key=lambda row: int(row[0].split(",")[0]))
    lines += table(("status", "code", "meaning"), rows)
    lines += [
        "When several hosts failed, the error of each is told, and the status is that of the",
        "gravest: a host that is not ready or not reached counts before one that is busy.",
    ]
    return lines


def _errors(kind: type) -> Iterator[Any]:
    for one in kind.__subclasses__():
        if one.__module__ == errors.__name__ and one is not errors.HostErrors:
            yield one
            yield from _errors(one)


def _first(kind: Any) -> str:
    text = kind.__doc__ or _comment(kind.__name__) or f"The {kind.code.replace('-', ' ')} is wrong."
    return " ".join(text.split("\n\n")[0].split())


def _comment(name: str) -> Optional[str]:
    """What the tree at the top of the module says of a class."""
    for line in (errors.__doc__ or "").splitlines():
        words = line.strip("│├└─ ").split()
        if words[:1] == [name]:
            return " ".join(word for word in words[1:] if not word.isdigit())
    return None


# The inventory


def _inventory() -> List[str]:
    lines = [
        "# Keys of an inventory",
        "",
        "`glm2-orch init` writes one with comments; `inventories/` has three. An unknown key is an",
        "error with its line. Settings of a host: `defaults`, then its groups, then its own key.",
        "",
        "## At the top",
        "",
        *table(("key", "meaning"), [(f"`{key}`", _TOP[key]) for key in read._TOP]),
        "## Settings of hosts",
        "",
        "In `defaults`, in a group, and below a host's name in `hosts`.",
        "",
    ]
    about = {**field_docs(model.Host), **_HOST}
    rows = [(f"`{key}`", about.get(key, "")) for key in host_settings.SETTINGS]
    rows += [("`ssh`", "see below"), ("`env`", "variables of every rank on the host")]
    lines += table(("key", "meaning"), rows)
    lines += ["## ssh", ""]
    rows = [(f"`{key}`", _SSH.get(key, "")) for key in host_settings._SSH]
    lines += table(("key", "meaning"), rows)
    lines += ["## job", "", "Defaults of `launch`, `plan` and `preflight`.", ""]
    about = {**field_docs(job.Job), **_JOB}
    lines += table(("key", "meaning"), [(f"`{key}`", about.get(key, "")) for key in KEYS])
    lines += ["## job.watch", "", "Also `--watch KEY=VALUE`. Times in seconds.", ""]
    about = {**watch_options.DECISIONS, **watch_options.SECONDS}
    lines += table(("key", "meaning"), [(f"`{key}`", text) for key, text in about.items()])
    lines += ["## job.recovery", "", "Also `--recover KEY=VALUE`.", ""]
    recovery = recovery_options.KEYS.items()
    lines += table(("key", "meaning"), [(f"`{key}`", text) for key, text in recovery])
    lines += ["## job.stage", "", code_of(stage_options), ""]
    lines += ["## notify", "", "A list; each item is one receiver.", ""]
    lines += table(("key", "meaning"), [(f"`{key}`", _NOTIFY[key]) for key in notify._KEYS])
    return lines


_TOP = {
    "cluster": "name of the cluster; default: the name of the file",
    "ssh": "how hosts are reached; see below",
    "defaults": "settings of all hosts",
    "groups": "name -> `hosts` (patterns) and settings; `spares` stand by",
    "hosts": "without `groups` the list of hosts, or name -> settings of single hosts",
    "job": "defaults of the job",
    "notify": "who is told of runs",
}
_HOST = {
    "address": "where ssh connects to; default: the host's name",
    "server_id": "its `server_id` in the rank table; default: the address",
    "devices": "device ids, e.g. `[0,8)`; half-open, also when written `[0,8]`",
    "device_ips": "addresses of the NICs in the order of the devices; default: ask the host",
    "device_target": " or ".join(f"`{target}`" for target in host_settings.DEVICE_TARGETS),
    "workdir": "absolute folder below which runs are made; `{host}` is the host's name",
    "python": "the interpreter that has MindSpore",
    "shared_workdir": "`true`, or where this machine sees `workdir` on a shared file system",
}
_SSH = {
    "user": "who logs in; default: as ssh would",
    "port": "default 22",
    "key": "private key; a relative path begins at the inventory",
    "known_hosts": "a server whose key is not in it is refused",
    "connect_timeout": "seconds; default 10",
    "proxy_jump": "a host, or several, that connections lead through",
    "proxy_command": "shell command whose input and output are the connection",
    "config": "`true`, or a file: ssh's own configuration counts where this one says nothing",
    "jump": "a host, or several, that connections lead through",
}
_JOB = {
    "config": "name of a shipped configuration, or a YAML file",
    "set": "key -> value, over those of the configuration",
    "predict_data": "what `predict` answers",
    "heartbeat_s": "seconds between two signs of life of a host",
    "watch": "see below",
    "recovery": "see below",
    "stage": "see below",
}
_NOTIFY = {
    "to": "one of " + ", ".join(f"`{kind}`" for kind in (*notify.WEBHOOKS, "command")),
    "on": "events: " + ", ".join(f"`{event}`" for event in notify.EVENTS) + "; default: all",
    "name": "what it is called in messages",
    "url_env": "variable of the environment with the URL",
    "url_file": "file with the URL",
    "secret_env": "variable with the secret that signs requests (dingtalk, feishu)",
    "secret_file": "file with that secret",
    "command": "program and arguments, run on the controller; the message is its input",
}


# Files of a run


def _run_files() -> List[str]:
    return [
        "# Files of a run",
        "",
        "On the controller, below `$GLM2_ORCH_HOME` (default: the platform's state folder), "
        "`runs/<run id>/`:",
        "",
        code_of(layout),
        "",
        "The copies are exact prefixes of the files on the hosts: their length is the offset from",
        "which a cut stream goes on. `plan.json` holds everything that is sent. `checkpoints/` has",
        "a `manifest.json` and, written last, `COMPLETE`.",
        "",
        "On a host: [contract 2](../contracts.md#2-the-run-folder-on-a-host).",
    ]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page, content in pages().items():
        (FOLDER / page).write_text(content, "utf-8")
        sys.stdout.write(f"{FOLDER / page}\n")
