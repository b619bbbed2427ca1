"""Telling the machine: a line in the user's crontab, or a timer and a service of systemd.

Whatever is written comes from ``templates/`` and names its schedule and home, so that exactly
that is found and removed again, and what others wrote stays as it is.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import List, Protocol, Sequence, Tuple

from orchestrator.errors import HostNotReady, UsageError
from orchestrator.planning.render import render
from orchestrator.problems import is_control, shown
from orchestrator.schedules.expression import parse_cron
from orchestrator.schedules.store import Schedule

STARTERS = ("cron", "systemd-user", "systemd-system")
_TIMEOUT_S = 60.0


class Starter(Protocol):
    """Starts schedules at their times."""

    def install(self, schedule: Schedule, log: Path) -> Tuple[str, ...]:
        """Tell the machine; notes for the user. ``log`` gets what is said before the command's
        own log exists. Raises HostNotReady when the machine refuses, leaving nothing."""
        ...

    def remove(self, schedule: Schedule) -> None:
        """Take back all that ``install`` wrote; no error when it is gone already."""
        ...

    def installed(self, schedule: Schedule) -> bool: ...


def starter(name: str) -> Starter:
    """The starter called ``name``, one of ``STARTERS``."""
    if name == "cron":
        return Crontab()
    user = name == "systemd-user"
    return Systemd(_user_units() if user else Path("/etc/systemd/system"), user=user)


def choose() -> str:
    """The starter that this machine has: systemd where it runs (of the system for root, else the
    user's own), else cron. Raises HostNotReady when there is neither."""
    if Path("/run/systemd/system").is_dir() and which("systemctl"):
        if os.getuid() == 0:
            return "systemd-system"
        if _call(["systemctl", "--user", "show-environment"]).returncode == 0:
            return "systemd-user"
    if which("crontab"):
        return "cron"
    raise HostNotReady(
        "this machine has neither systemd nor cron",
        hint="install cron, or let another machine's scheduler start: glm2-orch schedule run NAME",
    )


@dataclass(frozen=True)
class Crontab:
    """The crontab of the user who calls."""

    def install(self, schedule: Schedule, log: Path) -> Tuple[str, ...]:
        _refuse_control((*schedule.command, str(log)))
        mark = _mark(schedule)
        before = self._read()
        text = "".join(before) + ("" if not before or before[-1].endswith("\n") else "\n")
        self._write(
            text
            + render(
                "schedule.crontab.j2",
                mark=mark,
                cron=schedule.cron,
                command=schedule.command,
                log=(str(log),),
            )
        )
        return ()

    def remove(self, schedule: Schedule) -> None:
        lines = self._read()
        kept = _without(lines, _mark(schedule))
        if kept == lines:
            return
        if kept:
            self._write("".join(kept))
        else:
            _must(["crontab", "-r"])

    def installed(self, schedule: Schedule) -> bool:
        return f"{_mark(schedule)}\n" in self._read()

    def _read(self) -> List[str]:
        if which("crontab") is None:
            raise HostNotReady("this machine has no crontab command", hint="install cron")
        done = _call(["crontab", "-l"])
        if done.returncode == 0:
            return done.stdout.splitlines(keepends=True)
        if "no crontab for" in done.stderr:
            return []
        raise _refused(["crontab", "-l"], done)

    def _write(self, text: str) -> None:
        _must(["crontab", "-"], stdin=text)


@dataclass(frozen=True)
class Systemd:
    """Units of systemd in ``folder``: the user's own, or the system's."""

    folder: Path
    user: bool

    def install(self, schedule: Schedule, log: Path) -> Tuple[str, ...]:
        _refuse_control((*schedule.command, str(log)))
        service, timer = self._units(schedule)
        for path in (service, timer):
            if path.exists():
                raise UsageError(
                    f"there is a unit {path} already, of another home or hand",
                    hint="choose another name, or remove the unit",
                )
        calendars = parse_cron(schedule.cron).calendars()
        values = {"name": schedule.name, "home": schedule.home, "cron": schedule.cron}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            service.write_text(
                render("schedule.service.j2", command=schedule.command, log=str(log), **values),
                encoding="utf-8",
            )
            timer.write_text(
                render(
                    "schedule.timer.j2",
                    on_calendar="\n".join(f"OnCalendar={event}" for event in calendars),
                    **values,
                ),
                encoding="utf-8",
            )
            self._systemctl("daemon-reload")
            self._systemctl("enable", "--now", timer.name)
        except OSError as error:
            raise HostNotReady(
                f"cannot write units into {self.folder}: {error.strerror}",
                hint="use --with systemd-user or --with cron",
            ) from error
        except HostNotReady:
            self.remove(schedule)
            raise
        return self._notes()

    def remove(self, schedule: Schedule) -> None:
        units = self._units(schedule)
        there = [path for path in units if _written_for(path, schedule)]
        if not there:
            return
        timer = units[1].name
        self._systemctl("disable", "--now", timer, must=False)
        # The stamp that says when a persistent timer last came.
        self._systemctl("clean", "--what=state", timer, must=False)
        for path in there:
            path.unlink()
        self._systemctl("daemon-reload", must=False)

    def installed(self, schedule: Schedule) -> bool:
        return all(_written_for(path, schedule) for path in self._units(schedule))

    def _units(self, schedule: Schedule) -> Tuple[Path, Path]:
        stem = f"glm2-orch-{schedule.name}"
        return self.folder / f"{stem}.service", self.folder / f"{stem}.timer"

    def _notes(self) -> Tuple[str, ...]:
        name = pwd.getpwuid(os.getuid()).pw_name
        if not self.user or Path("/var/lib/systemd/linger", name).exists():
            return ()
        return (
            "timers of a user run only while the user is logged in; to change that: "
            f"loginctl enable-linger {name}",
        )

    def _systemctl(self, *words: str, must: bool = True) -> None:
        scope = ["--user"] if self.user else []
        command = ["systemctl", *scope, *words]
        if must:
            _must(command)
        else:
            _call(command)


def _user_units() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "systemd" / "user"


def _mark(schedule: Schedule) -> str:
    return f"# glm2-orch schedule {schedule.name} of {schedule.home}"


def _without(lines: Sequence[str], mark: str) -> List[str]:
    """``lines`` without those that are ``mark``, and the one after each."""
    kept: List[str] = []
    skip = False
    for line in lines:
        ours = line.rstrip("\n") == mark
        if not ours and not skip:
            kept.append(line)
        skip = ours
    return kept


def _written_for(unit: Path, schedule: Schedule) -> bool:
    try:
        first = unit.read_text("utf-8", "replace").partition("\n")[0]
    except FileNotFoundError:
        return False
    return first == f"# Written by glm2-orch for schedule {schedule.name} of {schedule.home}"


def _refuse_control(words: Sequence[str]) -> None:
    """A line end in a path would begin a line of its own in a crontab or unit."""
    for word in words:
        if any(is_control(char) for char in word):
            raise UsageError(
                f"{shown(word)} contains a control character", hint="use a path without it"
            )


def _must(command: Sequence[str], stdin: str = "") -> None:
    done = _call(command, stdin)
    if done.returncode != 0:
        raise _refused(command, done)


def _refused(command: Sequence[str], done: subprocess.CompletedProcess[str]) -> HostNotReady:
    said = " ".join((done.stderr or done.stdout).split())[:300]
    return HostNotReady(
        f"`{' '.join(command)}` ended with status {done.returncode}: {shown(said, 300)}",
        hint="see that this user may use it, or choose another way: --with " + ", ".join(STARTERS),
    )


def _call(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool of the system, in plain English, without a terminal."""
    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C"},
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(list(command), 127, "", str(error))
