"""The commands of the supervisor: each prints one JSON object, ``stream`` one a line."""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from typing import Callable, Dict, List, NoReturn, Optional

from . import control, fence, journal, snapshot, stopping
from .daemon import arm
from .failure import NodeError
from .folder import Json, RunFolder


def main(arguments: List[str]) -> int:
    """Run one command and return its exit status (see failure.EXIT_STATUS)."""
    try:
        options = _parser().parse_args(arguments)
        fence.admit(options.folder, caller_of(options))
        answer: Optional[Json] = options.action(options)
    except NodeError as error:
        _print(error.to_json())
        return error.exit_status
    except Exception as error:
        traceback.print_exc()
        _print(NodeError("error", f"{type(error).__name__}: {error}").to_json())
        return 1
    if answer is not None:
        _print(answer)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise NodeError("usage", message, "see: python3 supervisor.py --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="supervisor.py", description="Supervises one run on this host.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    commands.required = True

    def command(
        name: str, text: str, action: Callable[[argparse.Namespace], Optional[Json]]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--run-dir", required=True, type=_folder, dest="folder", metavar="DIR")
        sub.add_argument("--epoch", type=_offset, metavar="N", help="of the controller that asks")
        sub.add_argument("--owner", default="", metavar="TEXT", help="that controller's name")
        sub.set_defaults(action=action)
        return sub

    sub = command("arm", "take the locks and wait in the background for start", _arm)
    sub.add_argument("--start-timeout", type=_seconds, default=300.0, metavar="S")
    command("start", "start all processes", _start)
    sub = command("stream", "print everything new until the run has ended", _stream)
    sub.add_argument("--journal", type=_offset, default=0, metavar="OFFSET")
    sub.add_argument("--offsets", type=_offsets, default={}, metavar="JSON")
    command("status", "print one snapshot", lambda options: snapshot.take(options.folder))
    command("stacks", "show where every rank stands now", _stacks)
    command("claim", "take over control of the run", _claim)
    sub = command("stop", "end everything and prove that nothing is left", _stop)
    sub.add_argument("--grace", type=_seconds, metavar="S")
    sub.add_argument("--reason", default="stopped on request", metavar="TEXT")
    sub = command("sweep", "end what a dead supervisor left behind", _sweep)
    sub.add_argument("--grace", type=_seconds, metavar="S")
    return parser


def _arm(options: argparse.Namespace) -> Json:
    return arm(options.folder, options.start_timeout)


def _start(options: argparse.Namespace) -> Json:
    """Asking twice is fine: the answer to the first may have been lost on the wire."""
    folder: RunFolder = options.folder
    if snapshot.supervisor_identity(folder) is not None:
        try:
            answer = control.ask(folder.path, {"command": "start"}, timeout=60.0)
        except OSError as error:
            if _started_wall(folder) is None:
                raise NodeError(
                    "host-not-ready",
                    f"the supervisor in {folder.path} does not answer: {error}",
                    "stop the run and launch again",
                ) from error
        else:
            if "error" in answer:
                raise NodeError(**answer["error"])
            return _started(folder)
    if _started_wall(folder) is None:
        raise NodeError(
            "host-not-ready",
            f"no supervisor is armed in {folder.path}",
            "arm it first; an armed one that is not started in time ends by itself",
        )
    return _started(folder)


def _started(folder: RunFolder) -> Json:
    """``wall`` is the clock now, to tell by how much it differs from that of whoever asks."""
    return {"started": True, "started_wall": _started_wall(folder), "wall": time.time()}


def _started_wall(folder: RunFolder) -> Optional[float]:
    """When the run was started here; None: it was not, or its journal is not on the disk."""
    for _, event in journal.read(folder.journal):
        if event["event"] == "started":
            return float(event["wall"])
    return None


def _stacks(options: argparse.Namespace) -> Json:
    from . import stacks  # imported by the one command that needs it: arming is to be quick

    return stacks.take(options.folder)


def _stream(options: argparse.Namespace) -> None:
    from . import streaming

    streaming.stream(options.folder, options.journal, options.offsets, caller_of(options))


def _claim(options: argparse.Namespace) -> Json:
    """Everything was done before, by ``fence.admit``."""
    return {"claimed": True}


def caller_of(options: argparse.Namespace) -> Optional[fence.Caller]:
    """Who asks; None for somebody on the host, who gives no epoch."""
    return None if options.epoch is None else fence.Caller(options.epoch, options.owner)


def _stop(options: argparse.Namespace) -> Json:
    return stopping.stop(options.folder, options.grace, options.reason)


def _sweep(options: argparse.Namespace) -> Json:
    return stopping.sweep(options.folder, options.grace)


def _folder(text: str) -> RunFolder:
    return RunFolder(os.path.abspath(text))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(text)
    return value


def _offset(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _offsets(text: str) -> Dict[str, int]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return {name: _offset(str(offset)) for name, offset in value.items()}


def _print(answer: Json) -> None:
    print(json.dumps(answer), flush=True)
