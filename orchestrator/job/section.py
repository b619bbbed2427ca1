"""The ``job:`` section of an inventory -> Job, with every fault at its place."""

from __future__ import annotations

import os.path
import re
import shlex
from pathlib import Path
from typing import Dict, Optional, Tuple

from orchestrator import recovery_options, watch_options
from orchestrator.errors import Location
from orchestrator.job.model import RECIPES, Job, JobDefaults
from orchestrator.problems import Problems, nearest, shown
from orchestrator.stage_options import PREFIX, Stage, StageOptionError, parse_stage
from orchestrator.watch_options import Value
from orchestrator.yaml_positions import Document

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

KEYS = (
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


class Section:
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
            if key not in KEYS:
                message = f"unknown key {shown(str(key))} in `job`"
                self.wrong(message, str(key), hint=nearest(str(key), KEYS))
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
        return None if text is None else host_path(text, Path(self.defaults.folder))

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
            if ENV_NAME.fullmatch(name) is None:
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


def host_path(text: str, folder: Path) -> str:
    """An absolute path, from a relative one; what is staged has no folder yet."""
    return text if text.startswith(PREFIX) else os.path.normpath(folder / text)
