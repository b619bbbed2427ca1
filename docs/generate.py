"""The pages of ``docs/reference/``, made from the code: ``python -m docs.generate`` writes them.

``pages()`` returns them by name; a test compares them with the files.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from unittest.mock import patch

import click

import glm2.__main__ as worker
from glm2 import config as model_config
from glm2 import dataset_section, settings, yaml_source
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
        "worker-yaml.md": _worker_yaml(),
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
    lines = ["# Commands of glm2-orch", "", _paragraphs(cli.help or ""), ""]
    shown = [(name, one) for name, one in leaves(cli, ("glm2-orch",)) if not one.hidden]
    for name, command in shown:
        lines += [f"## {name}", "", *_command(name, command)]
    return lines


def _command(name: str, command: click.Command) -> List[str]:
    context = click.Context(command, info_name=name)
    lines = ["```", f"{name} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
    lines += [_paragraphs(command.help or ""), ""]
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            rows.append((f"`{record[0]}`", record[1]))
    return lines + _table(("option", "meaning"), rows)


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
        lines += _table(("option", "meaning"), rows)
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
    lines += _table(("status", "code", "meaning"), rows)
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
        *_table(("key", "meaning"), [(f"`{key}`", _TOP[key]) for key in read._TOP]),
        "## Settings of hosts",
        "",
        "In `defaults`, in a group, and below a host's name in `hosts`.",
        "",
    ]
    about = {**field_docs(model.Host), **_HOST}
    rows = [(f"`{key}`", about.get(key, "")) for key in host_settings.SETTINGS]
    rows += [("`ssh`", "see below"), ("`env`", "variables of every rank on the host")]
    lines += _table(("key", "meaning"), rows)
    lines += ["## ssh", ""]
    rows = [(f"`{key}`", _SSH.get(key, "")) for key in host_settings._SSH]
    lines += _table(("key", "meaning"), rows)
    lines += ["## job", "", "Defaults of `launch`, `plan` and `preflight`.", ""]
    about = {**field_docs(job.Job), **_JOB}
    lines += _table(("key", "meaning"), [(f"`{key}`", about.get(key, "")) for key in KEYS])
    lines += ["## job.watch", "", "Also `--watch KEY=VALUE`. Times in seconds.", ""]
    about = {**watch_options.DECISIONS, **watch_options.SECONDS}
    lines += _table(("key", "meaning"), [(f"`{key}`", text) for key, text in about.items()])
    lines += ["## job.recovery", "", "Also `--recover KEY=VALUE`.", ""]
    recovery = recovery_options.KEYS.items()
    lines += _table(("key", "meaning"), [(f"`{key}`", text) for key, text in recovery])
    lines += ["## job.stage", "", _code(stage_options), ""]
    lines += ["## notify", "", "A list; each item is one receiver.", ""]
    lines += _table(("key", "meaning"), [(f"`{key}`", _NOTIFY[key]) for key in notify._KEYS])
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


# The worker's YAML


def _worker_yaml() -> List[str]:
    lines = [
        "# Keys of the worker's YAML",
        "",
        "The keys of the guide's files. One that is not listed is an error with its line; one that",
        "has no effect here is named in a warning. `python -m glm2 check --config FILE` judges a",
        "file; `--set KEY=VALUE` sets one key.",
        "",
    ]
    taken, ignored = _trace()
    rows = [
        (f"`{key}`", kind, "" if default is None else f"`{default}`", _meaning(key))
        for key, (kind, default) in sorted(taken.items())
    ]
    lines += _table(("key", "kind", "default", "meaning"), rows)
    lines += ["## Accepted without effect", "", ", ".join(f"`{key}`" for key in sorted(ignored))]
    return lines


def _trace() -> Tuple[Dict[str, Tuple[str, Any]], List[str]]:
    """Keys that reading a configuration asks for, with kind and default; keys it ignores."""
    taken: Dict[str, Tuple[str, Any]] = {}
    ignored: List[str] = []
    real_take, real_ignore = yaml_source.Section.take, yaml_source.Section.ignore

    def name(section: Any, key: str) -> str:
        parts = ["[]" if part.isdigit() else part for part in section.name(key).split(".")]
        return ".".join(parts).replace(".[]", "[]")

    def take(
        section: Any, key: str, kind: type, default: Any = yaml_source._REQUIRED
    ) -> Any:  # the reader's own signature
        needed = default is yaml_source._REQUIRED
        if kind is not list or default:
            shown = "required" if needed else default if default != "" else None
            taken.setdefault(name(section, key), (kind.__name__, shown))
        return real_take(section, key, kind, default)

    def ignore(section: Any, *keys: str) -> None:
        ignored.extend(name(section, key) for key in keys)
        real_ignore(section, *keys)

    with (
        patch.object(yaml_source.Section, "take", take),
        patch.object(yaml_source.Section, "ignore", ignore),
    ):
        # First those of training: the defaults shown are theirs.
        for path in sorted(
            settings.CONFIGS.glob("*.yaml"), key=lambda p: not p.stem.startswith("run_")
        ):
            settings.load_settings(path)
    return taken, sorted(set(ignored) - set(taken))


_FIELDS: Sequence[Tuple[str, type]] = (
    ("model.model_config.pet_config.", model_config.LoraConfig),
    ("model.model_config.", model_config.ModelConfig),
    ("train_dataset.", dataset_section.Dataset),
    ("eval_dataset.", dataset_section.Dataset),
    ("context.", settings.Device),
    ("optimizer.", settings.Optimizer),
    ("lr_schedule.", settings.Schedule),
    ("runner_wrapper.scale_sense.", settings.LossScale),
    ("parallel_config.", settings.Parallel),
    ("", settings.Settings),
)
_NAMES = {"device_target": "target", "device_id": "id", "max_device_memory": "max_memory",
          "runtime_num_threads": "threads", "lr_end": "end", "loss_scale_value": "initial",
          "scale_factor": "factor", "scale_window": "window", "dataset_dir": "file",
          "vocab_file": "tokenizer", "gradient_aggregation_group": "gradient_groups",
          "resume_training": "resume", "gradient_accumulation_steps": "accumulation"}  # fmt: skip
_KEYS = {
    "callbacks[].type": "`CheckpointMointor` (the guide's spelling) or `MFLossMonitor`; others "
    "have no effect",
    "callbacks[].prefix": "first part of the checkpoints' names",
    "callbacks[].save_checkpoint_steps": "save after so many steps, and always at the end",
    "callbacks[].keep_checkpoint_max": "newest files of each rank that are kept",
    "context.mode": "0: graph mode; nothing else is accepted",
    "load_checkpoint": "weights to start from",
    "lr_schedule.learning_rate": "the highest one",
    "lr_schedule.warmup_steps": "steps until it is reached",
    "output_dir": "where checkpoints go; `launch` decides it for its ranks",
    "parallel.enable_parallel_optimizer": "data ranks share the optimizer's state",
    "parallel.strategy_ckpt_config.only_trainable_params": "with LoRA: checkpoints hold the "
    "adapters alone",
    "parallel_config.micro_batch_num": "batches whose gradients make one step",
    "parallel_config.pipeline_stage": "1: nothing else is supported",
    "run_mode": ", ".join(f"`{mode}`" for mode in settings.RUN_MODES),
    "runner_config.batch_size": "rows of each rank in a step; before that of the dataset",
    "runner_config.epochs": "passes over the dataset",
    "runner_wrapper.max_grad_norm": "global norm that gradients are clipped to",
    "runner_wrapper.use_clip_grad": "False: not clipped",
    "seed": "of weights, order of rows and dropout",
    "infer.prefill_model_path": "where `export` writes the graph that reads a prompt",
    "infer.increment_model_path": "where it writes the graph that reads one more token",
    "infer.infer_seq_length": "must be the model's `seq_length`",
}
_LAST = {
    **dict.fromkeys(
        (
            "auto_trans_ckpt",
            "auto_tune",
            "layer_scale",
            "lr_scale",
            "profile",
            "only_save_strategy",
        ),
        "True is refused: glm2 has none of it",
    ),
    "micro_batch_interleave_num": "1: nothing else is supported",
    "expert_parallel": "1: glm2 has no experts",
    "type": "the guide's class name; nothing else is accepted",
    "phase": "accepted; the section's name decides",
    "version": "2, the row format of ChatGLM2",
    "repeat": "1; use `runner_config.epochs`",
    "origin_columns": "the two columns of AdvertiseGen",
    "shuffle": "another order of rows in each epoch",
    "seed": "of the order of rows",
    "ignore_pad_token_for_loss": "False: padding is learned, too",
    "beta1": "of AdamW",
    "beta2": "of AdamW",
    "eps": "of AdamW",
    "weight_decay": "of AdamW; norms and biases are not decayed",
    "power": "of the polynomial decay",
    "lr_end": "the rate at the end of the decay",
}


def _meaning(key: str) -> str:
    if key in _KEYS:
        return _KEYS[key]
    last = key.rpartition(".")[2]
    for prefix, kind in _FIELDS:
        if key.startswith(prefix):
            docs = field_docs(kind)
            return docs.get(_NAMES.get(last, last), docs.get(last, _LAST.get(last, "")))
    return ""


# Files of a run


def _run_files() -> List[str]:
    return [
        "# Files of a run",
        "",
        "On the controller, below `$GLM2_ORCH_HOME` (default: the platform's state folder), "
        "`runs/<run id>/`:",
        "",
        _code(layout),
        "",
        "The copies are exact prefixes of the files on the hosts: their length is the offset from",
        "which a cut stream goes on. `plan.json` holds everything that is sent. `checkpoints/` has",
        "a `manifest.json` and, written last, `COMPLETE`.",
        "",
        "On a host: [contract 2](../contracts.md#2-the-run-folder-on-a-host).",
    ]


# Parts


def field_docs(kind: type) -> Mapping[str, str]:
    """The texts that stand below the fields of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    names = {field.name for field in dataclasses.fields(kind)}
    found: Dict[str, str] = {}
    assert isinstance(tree, ast.ClassDef)
    for before, after in zip(tree.body, tree.body[1:]):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            text = ast.get_docstring(ast.Module([after], []), clean=True)  # type: ignore[arg-type]
            if text and before.target.id in names:
                found[before.target.id] = text.replace("``", "`")
    return found


def _code(module: Any) -> str:
    """The indented block of a module's docstring, as a fenced one."""
    text = (module.__doc__ or "").partition("::\n\n")[2]
    block = []
    for line in text.splitlines():
        if line and not line.startswith("    "):
            break
        block.append(line)
    return "```\n" + textwrap.dedent("\n".join(block)).strip("\n") + "\n```"


def _paragraphs(text: str) -> str:
    """Text of a help page: prose, and its ``\\b`` blocks fenced."""
    parts = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            parts.append("```\n" + textwrap.dedent(part[1:].strip("\n")) + "\n```")
        else:
            parts.append(part)
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return [
        *(
            "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in line) + " |"
            for line in lines
        ),
        "",
    ]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page, content in pages().items():
        (FOLDER / page).write_text(content, "utf-8")
        sys.stdout.write(f"{FOLDER / page}\n")
