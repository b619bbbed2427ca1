"""What to run on the servers: command line + ``job:`` of the inventory -> Job (frozen).

Precedence: command line, then the inventory's ``job:`` section, then the defaults here.
"""

from __future__ import annotations

import os.path
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple, TypeVar

from orchestrator import recovery_options, watch_options
from orchestrator.errors import JobError, Location, UsageError
from orchestrator.problems import Problems, nearest, shown
from orchestrator.stage_options import PREFIX, Stage, StageOptionError, parse_stage
from orchestrator.watch_options import Value
from orchestrator.worker_config import WorkerConfig, load_config, set_value
from orchestrator.yaml_positions import Document, parse_scalar
from orchestrator.yaml_positions import Path as KeyPath

MODES = ("train", "finetune", "eval", "predict", "export")
RECIPES = ("auto", "ascend_ranktable", "dynamic_cluster", "standalone")
WORKLOADS = ("glm2", "mindformers")

_T = TypeVar("_T")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """One launch: what runs on every rank, and how it is started and stopped."""

    run_id: str
    mode: str
    """``train``, ``finetune``, ``eval``, ``predict`` or ``export``."""
    config: Optional[WorkerConfig]
    """Configuration of the worker; None only with ``worker_command``."""
    recipe: str = "auto"
    """How ranks find each other: ``ascend_ranktable``, ``dynamic_cluster``, ``standalone``; or
    ``auto``: one rank standalone, Ascend by rank table, CPU as a dynamic cluster."""
    scheduler_port: Optional[int] = None
    """Port of MindSpore's scheduler; None: a free one if the host's facts name it, else 8118."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of every rank, over the hosts' own."""
    worker_command: Tuple[str, ...] = ()
    """Command of a rank (no shell reads it); empty: that of ``workload``."""
    workload: str = "glm2"
    """``glm2`` (``python -m glm2``) or ``mindformers`` (its ``run_mindformer.py``)."""
    mindformers_dir: Optional[str] = None
    """Where MindFormers is on the hosts: an absolute path, or ``staged:NAME``."""
    worker_args: Tuple[str, ...] = ()
    """Further arguments of the worker."""
    load_checkpoint: Optional[str] = None
    """Absolute path, on the hosts, of weights to start from."""
    predict_data: Optional[str] = None
    grace_s: float = 30.0
    """Time in seconds that a rank has between SIGTERM and SIGKILL, to save a checkpoint."""
    heartbeat_s: float = 1.0
    watch: Mapping[str, Value] = field(default_factory=dict)
    """How it is watched: keys of ``watch_options``, where they differ from the defaults."""
    recovery: Mapping[str, recovery_options.Value] = field(default_factory=dict)
    """What is done after a failure: keys of ``recovery_options``, likewise."""
    stage: Stage = field(default_factory=Stage)
    """Files of this machine that the hosts get first; ``staged:NAME`` names them there."""

    @property
    def runs_glm2(self) -> bool:
        """Whether the ranks run our own worker."""
        return not self.worker_command and self.workload == "glm2"


@dataclass(frozen=True)
class JobOptions:
    """What the command line says; None and empty: not said."""

    config: Optional[str] = None
    recipe: Optional[str] = None
    scheduler_port: Optional[int] = None
    settings: Tuple[str, ...] = ()
    """``--set KEY=VALUE``: values in the worker's configuration."""
    env: Tuple[str, ...] = ()
    """``--env NAME=VALUE``."""
    worker_command: Optional[str] = None
    workload: Optional[str] = None
    mindformers_dir: Optional[str] = None
    worker_args: Tuple[str, ...] = ()
    load_checkpoint: Optional[str] = None
    predict_data: Optional[str] = None
    grace_s: Optional[float] = None
    heartbeat_s: Optional[float] = None
    watch: Tuple[str, ...] = ()
    """``--watch KEY=VALUE``."""
    stage_direct: bool = False
    """``--stage-direct``: no host passes staged files on to another."""
    recovery: Tuple[str, ...] = ()
    """``--recover KEY=VALUE``."""


@dataclass(frozen=True)
class JobDefaults:
    """The ``job:`` section of an inventory (see ``Inventory.job``); relative paths in it start
    at ``folder``."""

    values: Mapping[str, object] = field(default_factory=dict)
    locations: Mapping[KeyPath, Location] = field(default_factory=dict)
    folder: str = "."


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
    section = _Section(defaults)
    base = section.job(run_id, mode)
    section.problems.raise_any(JobError, "the `job` section")
    command = base.worker_command
    if options.worker_command is not None:
        command = _split(options.worker_command)
    checkpoint = base.load_checkpoint
    if options.load_checkpoint:
        checkpoint = _host_path(options.load_checkpoint, cwd)
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
    section = _Section(defaults)
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
    options: JobOptions, section: _Section, config_dir: Optional[Path], cwd: Path, *, needed: bool
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
    if option == "--env" and _ENV_NAME.fullmatch(key) is None:
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


def _host_path(text: str, folder: Path) -> str:
    """An absolute path, from a relative one; what is staged has no folder yet."""
    return text if text.startswith(PREFIX) else os.path.normpath(folder / text)


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


_KEYS = (
    "config",
    "recipe",
    "scheduler_port",
    "set",
    "env",
    "worker_command",
    "workload",
    "mindformers_dir",
    "worker_args",
    "load_checkpoint",
    "predict_data",
    "grace_s",
    "heartbeat_s",
    "watch",
    "recovery",
    "stage",
)


class _Section:
    """Typed access to the ``job:`` section; what is wrong goes to ``problems``."""

    def __init__(self, defaults: JobDefaults) -> None:
        self.defaults = defaults
        self.document = Document(defaults.values, defaults.locations)
        self.problems = Problems()

    def place(self, *path: str) -> Location:
        return self.document.place(path) or Location("the `job` section")

    def wrong(self, message: str, *path: str, hint: str = "") -> None:
        self.problems.add(message, self.place(*path), hint)

    def job(self, run_id: str, mode: str) -> Job:
        """The job that the section describes, without its configuration."""
        for key in self.defaults.values:
            if key not in _KEYS:
                message = f"unknown key {shown(str(key))} in `job`"
                self.wrong(message, str(key), hint=nearest(str(key), _KEYS))
        self.text("config")
        self.settings()
        return Job(
            run_id=run_id,
            mode=mode,
            config=None,
            recipe=self.recipe(),
            scheduler_port=self.port("scheduler_port"),
            env=self.env(),
            worker_command=self.argv("worker_command"),
            workload=self.text("workload") or Job.workload,
            mindformers_dir=self.text("mindformers_dir"),
            worker_args=self.argv("worker_args"),
            load_checkpoint=self.path("load_checkpoint"),
            predict_data=self.text("predict_data"),
            grace_s=self.seconds("grace_s", Job.grace_s),
            heartbeat_s=self.seconds("heartbeat_s", Job.heartbeat_s),
            watch=self.watch(),
            recovery=self.recovery(),
            stage=self.stage(),
        )

    def text(self, key: str) -> Optional[str]:
        value = self.defaults.values.get(key)
        if value is None and key not in self.defaults.values:
            return None
        if not isinstance(value, str) or not value.strip():
            self.wrong(f"`{key}` must be text", key, hint="quote it")
            return None
        return value

    def path(self, key: str) -> Optional[str]:
        text = self.text(key)
        return None if text is None else _host_path(text, Path(self.defaults.folder))

    def stage(self) -> Stage:
        if self.defaults.values.get("stage") is None:
            return Stage()
        try:
            return parse_stage(self.defaults.values["stage"], self.defaults.folder)
        except StageOptionError as error:
            self.wrong(f"`stage`: {error}", "stage", *error.path, hint=error.hint)
            return Stage()

    def recipe(self) -> str:
        recipe = self.text("recipe")
        if recipe is not None and recipe not in RECIPES:
            self.wrong(f"`recipe` {shown(recipe)} is not one of {', '.join(RECIPES)}", "recipe")
            return Job.recipe
        return recipe or Job.recipe

    def port(self, key: str) -> Optional[int]:
        value = self.defaults.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65_535:
            self.wrong(f"`{key}` must be a port from 1 to 65535", key)
            return None
        return value

    def seconds(self, key: str, otherwise: float) -> float:
        value = self.defaults.values.get(key, otherwise)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            self.wrong(f"`{key}` must be a time in seconds", key)
            return otherwise
        return float(value)

    def argv(self, key: str) -> Tuple[str, ...]:
        value = self.defaults.values.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            try:
                value = shlex.split(value)
            except ValueError as error:
                self.wrong(f"`{key}`: {error}", key, hint="balance the quotes")
                return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.wrong(f"`{key}` must be text or a list of texts", key, hint="quote the items")
            return ()
        return tuple(value)

    def env(self) -> Dict[str, str]:
        variables: Dict[str, str] = {}
        for name, value in self.mapping("env").items():
            if _ENV_NAME.fullmatch(name) is None:
                self.wrong(f"{shown(name)} cannot name an environment variable", "env", name)
            elif isinstance(value, bool) or not isinstance(value, (str, int)):
                self.wrong(f"`env.{name}` must be text", "env", name, hint="quote it")
            else:
                variables[name] = str(value)
        return variables

    def watch(self) -> Dict[str, Value]:
        options: Dict[str, Value] = {}
        for key, value in self.mapping("watch").items():
            try:
                options[key] = watch_options.check(key, value)
            except watch_options.WatchOptionError as error:
                self.wrong(str(error), "watch", key, hint=error.hint)
        return options

    def recovery(self) -> Dict[str, recovery_options.Value]:
        options: Dict[str, recovery_options.Value] = {}
        for key, value in self.mapping("recovery").items():
            try:
                options[key] = recovery_options.check(key, value)
            except recovery_options.RecoveryOptionError as error:
                self.wrong(str(error), "recovery", key, hint=error.hint)
        return options

    def settings(self) -> Dict[str, object]:
        return self.mapping("set")

    def mapping(self, key: str) -> Dict[str, object]:
        value = self.defaults.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.wrong(f"`{key}` must be a mapping", key, hint="write `name: value` lines below it")
            return {}
        return {str(name): item for name, item in value.items()}
