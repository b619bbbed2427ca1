"""``glm2-orch status --watch``: a screen that is kept fresh, or a line a change in a pipe."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Dict, Iterator, Mapping, Optional, Union

import click

from orchestrator.cli.output import console, json_text, say

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.preflight.npu_smi import NpuTable
    from orchestrator.report.hosts import Usage
    from orchestrator.report.reading import RunReader, Snapshot
    from orchestrator.runs.layout import RunPaths

Devices = Callable[[], Mapping[str, "Usage"]]

_ASK_EVERY_S = 15.0


def watch(paths: RunPaths, *, interval: float, live: bool, output: str) -> Optional[int]:
    """Show the run until it is over; the exit status of its ending.

    A terminal gets a screen; a pipe a line whenever something changed, with ``output`` json a
    JSON object. ``live`` asks the hosts for the use of their devices, on a terminal only.
    """
    from orchestrator.report.reading import RunReader

    reader, screen = RunReader(paths), console()
    if output == "json" or not screen.is_terminal:
        return _lines(reader, interval, output)
    with _asked(paths) if live else _nobody() as devices:
        return _screen(reader, screen, interval, devices)


def _screen(reader: RunReader, screen: Console, interval: float, devices: Devices) -> Optional[int]:
    from rich.live import Live

    shot = reader.read()
    try:
        with Live(console=screen, screen=True, auto_refresh=False) as canvas:
            while not shot.state.status.is_terminal:
                _draw(shot, screen, devices, lambda view: canvas.update(view, refresh=True))
                time.sleep(interval)
                shot = reader.read()
    finally:
        # The screen goes: what it showed last stays.
        _draw(shot, screen, devices, screen.print)
    return shot.state.exit_status


def _draw(shot: Snapshot, screen: Console, devices: Devices, show: Callable[..., None]) -> None:
    from orchestrator.report.live import view

    width, height = screen.size
    plain = not screen.encoding.startswith("utf")
    # The last line of a terminal stays free: writing it to its end would scroll.
    show(view(shot, width, height - 1, time.time(), devices=devices(), plain=plain))


def _lines(reader: RunReader, interval: float, output: str) -> Optional[int]:
    from orchestrator.cli.status import state_record
    from orchestrator.report.live import line_of

    last = ""
    while True:
        shot = reader.read()
        if output == "json":
            record = {"schema": 1, **state_record(shot.state)}
            text = json_text(record)
        else:
            text = line_of(shot, time.time())
        if text != last:
            last = text
            stamp = "" if output == "json" else time.strftime("%H:%M:%S ")
            click.echo(stamp + text)
        if shot.state.status.is_terminal:
            return shot.state.exit_status
        time.sleep(interval)


@contextmanager
def _nobody() -> Iterator[Devices]:
    yield dict


@contextmanager
def _asked(paths: RunPaths) -> Iterator[Devices]:
    """The latest answers of the hosts, asked by a thread of their own every now and then."""
    from orchestrator.engine.control import reopened
    from orchestrator.engine.devices import NO_TOOL, device_tables
    from orchestrator.report.hosts import usage_of

    answers: Dict[str, Union[NpuTable, str]] = {}
    closing = threading.Event()
    with reopened(paths) as run:
        transports = dict(run.transports)

        def ask() -> None:
            while not closing.is_set() and transports:
                answers.update(device_tables(transports))
                for host in [host for host in transports if answers.get(host) == NO_TOOL]:
                    del transports[host]
                closing.wait(_ASK_EVERY_S)

        asking = threading.Thread(target=ask, name="devices", daemon=True)
        asking.start()
        try:
            yield lambda: {
                host: usage_of(table)
                for host, table in list(answers.items())
                if not isinstance(table, str)
            }
        finally:
            closing.set()
    without = {host: why for host, why in answers.items() if isinstance(why, str)}
    if without:
        host, why = next(iter(without.items()))
        more = f" ({len(without)} hosts)" if len(without) > 1 else ""
        say(f"no use of devices is shown: {host}: {why}{more}")
