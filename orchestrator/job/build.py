"""Command line, then the inventory's ``job:`` section, then the defaults -> Job (frozen)."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Optional, Tuple, TypeVar

from orchestrator import recovery_options, watch_options
from orchestrator.errors import JobError, Location, UsageError
from orchestrator.job.model import MODES, RECIPES, WORKLOADS, Job, JobDefaults, JobOptions
from orchestrator.job.section import ENV_NAME, Section, host_path
from orchestrator.problems import shown
from orchestrator.stage_options import PREFIX, Stage
from orchestrator.watch_options import Value
from orchestrator.worker_config import WorkerConfig, load_config, set_value
from orchestrator.yaml_positions import parse_scalar

_T = TypeVar("_T")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def build_job(
    run_id: str,
    mode: str,
    options: JobOptions,
    defaults: JobDefaults,
    *,
    config_dir: Optional[Path],
    cwd: Path,
) -> Job:
    """The job of a launch. ``config_dir`` holds the shipped configurations (``tiny_cpu.yaml`` is
    the configuration ``tiny_cpu``); relative paths of the command line start at ``cwd``.

    Raises UsageError for a malformed option, JobError for a bad ``job:`` section or configuration.
    """
    check_run_id(run_id)
    if mode not in MODES:
        raise UsageError(f"mode {shown(mode)} is not one of {', '.join(MODES)}")
    section = Section(defaults)
    base = section.job(run_id, mode)
    section.problems.raise_any(JobError, "the `job` section")
    command = base.worker_command
    if options.worker_command is not None:
        command = _split(options.worker_command)
    checkpoint = base.load_checkpoint
    if options.load_checkpoint:
        checkpoint = host_path(options.load_checkpoint, cwd)
    job = replace(
        base,
        config=_config(options, section, config_dir, cwd, needed=not command),
        recipe=options.recipe or base.recipe,
        scheduler_port=_given(options.scheduler_port, base.scheduler_port),
        env={**base.env, **dict(_assignment("--env", text) for text in options.env)},
        worker_command=command,
        workload=options.workload or base.workload,
        mindformers_dir=options.mindformers_dir or base.mindformers_dir,
        worker_args=(*base.worker_args, *options.worker_args),
        load_checkpoint=checkpoint,
        predict_data=_given(options.predict_data, base.predict_data),
        grace_s=_given(options.grace_s, base.grace_s),
        heartbeat_s=_given(options.heartbeat_s, base.heartbeat_s),
        watch={**base.watch, **dict(_watch_option(text) for text in options.watch)},
        stage=replace(base.stage, encrypt=base.stage.encrypt or options.stage_direct),
        recovery={**base.recovery, **dict(_recovery_option(text) for text in options.recovery)},
    )
    _check(job)
    return job


def stage_of(defaults: JobDefaults) -> Stage:
    """What the ``job:`` section stages. Raises JobError."""
    section = Section(defaults)
    stage = section.stage()
    section.problems.raise_any(JobError, "the `stage` section")
    return stage


def check_run_id(run_id: str) -> None:
    """Raise UsageError unless ``run_id`` can name folders and files."""
    if _RUN_ID.fullmatch(run_id) is None or run_id == "latest":
        raise UsageError(
            f"run id {shown(run_id)} is not usable",
            hint="use up to 64 letters, digits, `.`, `_`, `-`, starting with a letter or digit; "
            "`latest` means the last run",
        )


def _config(
    options: JobOptions, section: Section, config_dir: Optional[Path], cwd: Path, *, needed: bool
) -> Optional[WorkerConfig]:
    name, folder = options.config, cwd
    if name is None:
        name, folder = section.text("config"), Path(section.defaults.folder)
    settings = section.settings()
    if name is None:
        if needed:
            raise JobError(
                "no configuration is given for the worker",
                hint="add --config NAME or FILE, or `config:` to the `job` section",
            )
        if settings or options.settings:
            raise UsageError("--set needs a configuration", hint="add --config")
        return None
    config = load_config(name, config_dir=config_dir, folder=folder)
    for key, value in settings.items():
        config = set_value(config, key, value, section.place("set", key))
    for text in options.settings:
        key, written = _assignment("--set", text)
        try:
            value = parse_scalar(written)
        except ValueError as error:
            raise UsageError(
                f"--set {shown(text)}: the value is not YAML: {error}", hint="quote it"
            ) from error
        config = set_value(config, key, value, Location(f"--set {key}"))
    return config


def _assignment(option: str, text: str) -> Tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{option} {shown(text)} has no `=`", hint=f"write {option} NAME=VALUE")
    if option == "--env" and ENV_NAME.fullmatch(key) is None:
        raise UsageError(f"--env {shown(text)}: {shown(key)} cannot name an environment variable")
    return key.strip(), value


def _watch_option(text: str) -> Tuple[str, Value]:
    key, written = _assignment("--watch", text)
    try:
        return key, watch_options.check(key, parse_scalar(written))
    except watch_options.WatchOptionError as error:
        raise UsageError(f"--watch {shown(text)}: {error}", hint=error.hint) from None
    except ValueError as error:
        raise UsageError(
            f"--watch {shown(text)}: the value is not YAML: {error}", hint="quote it"
        ) from error


def _recovery_option(text: str) -> Tuple[str, recovery_options.Value]:
    key, written = _assignment("--recover", text)
    try:
        return key, recovery_options.check(key, parse_scalar(written))
    except recovery_options.RecoveryOptionError as error:
        raise UsageError(f"--recover {shown(text)}: {error}", hint=error.hint) from None
    except ValueError as error:
        raise UsageError(
            f"--recover {shown(text)}: the value is not YAML: {error}", hint="quote it"
        ) from error


def _split(command: str) -> Tuple[str, ...]:
    try:
        argv = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(
            f"--worker-command {shown(command)}: {error}", hint="balance the quotes"
        ) from error
    if not argv:
        raise UsageError("--worker-command is empty", hint="write the command of a rank")
    return argv


def _given(option: Optional[_T], otherwise: _T) -> _T:
    return otherwise if option is None else option


def _check(job: Job) -> None:
    if job.recipe not in RECIPES:
        raise UsageError(f"recipe {shown(job.recipe)} is not one of {', '.join(RECIPES)}")
    if job.workload not in WORKLOADS:
        raise UsageError(f"workload {shown(job.workload)} is not one of {', '.join(WORKLOADS)}")
    folder = job.mindformers_dir
    if job.workload == "mindformers" and (folder is None or not folder.startswith(("/", PREFIX))):
        raise UsageError(
            "the workload mindformers needs the absolute folder of MindFormers on the hosts",
            hint="add --mindformers-dir DIR, where run_mindformer.py is, or stage it: "
            "`mindformers_dir: staged:NAME`",
        )
    if job.scheduler_port is not None and not 1 <= job.scheduler_port <= 65_535:
        raise UsageError(f"scheduler port {job.scheduler_port} is not between 1 and 65535")
    if job.grace_s < 0 or not 0.05 <= job.heartbeat_s <= 60:
        raise UsageError(
            f"grace {job.grace_s:g} s and heartbeat {job.heartbeat_s:g} s are out of range",
            hint="the grace is not negative, the heartbeat from 0.05 to 60 s",
        )
    texts = [*job.env.values(), *job.worker_command, *job.worker_args, job.predict_data or ""]
    for text in (*texts, job.load_checkpoint or "", job.mindformers_dir or ""):
        if "\0" in text or any("\ud800" <= char < "\ue000" for char in text):
            raise UsageError(
                f"{shown(text)} contains a NUL character or bytes that are not UTF-8",
                hint="correct the option or environment value",
            )
