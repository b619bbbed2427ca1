"""The commands of the supervisor: each prints one JSON object, ``stream`` one a line."""

from __future__ import annotations

import os
import sys
import time

from . import fence  # others in the commands that need them, because of light.py
from .failure import NodeError, print_exception
from .folder import Json, RunFolder
from .light import dumps, loads

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    Action = Callable[["Options"], Optional[Json]]


def main(arguments: List[str]) -> int:
    """Run one command and return its exit status (see failure.EXIT_STATUS)."""
    try:
        action, options = _parse(arguments)
        fence.admit(options.folder, caller_of(options))
        answer = action(options)
    except NodeError as error:
        _print(error.to_json())
        return error.exit_status
    except Exception as error:
        print_exception()
        _print(NodeError("error", f"{type(error).__name__}: {error}").to_json())
        return 1
    if answer is not None:
        _print(answer)
    return 0


class Options:
    """What a command was asked with."""

    def __init__(self) -> None:
        self.folder = RunFolder("")
        self.epoch: Optional[int] = None
        self.owner = ""
        self.start_timeout = 300.0
        self.journal = 0
        self.offsets: Dict[str, int] = {}
        self.grace: Optional[float] = None
        self.reason = "stopped on request"


def _parse(arguments: List[str]) -> Tuple[Action, Options]:
    """By hand: argparse alone would take a fifth of the time in which a supervisor is armed."""
    name = arguments[0] if arguments else ""
    if name not in _COMMANDS:
        raise NodeError("usage", f"no such command: {name!r}", f"one of: {', '.join(_COMMANDS)}")
    action, own = _COMMANDS[name]
    known = (*_ALWAYS, *own)
    options = Options()
    words = iter(arguments[1:])
    for word in words:
        option, equals, value = word.partition("=")
        if option not in known:
            hint = f"one of: {', '.join(known)}"
            raise NodeError("usage", f"{name}: no such option: {word!r}", hint)
        field, convert = _OPTIONS[option]
        try:
            value = value if equals else next(words)
            setattr(options, field, convert(value))
        except StopIteration:
            raise NodeError("usage", f"{name}: {option} is without a value") from None
        except ValueError:
            raise NodeError("usage", f"{name}: {option}: {value!r} makes no sense") from None
    if not options.folder.path:
        raise NodeError("usage", f"{name}: --run-dir DIR is missing")
    return action, options


def _arm(options: Options) -> Json:
    """Start the supervisor in the background; its answer, once it is really ready.

    Raises NodeError: ``spec``; ``busy`` when the folder or a device is held or the folder was
    used before; ``host-not-ready`` when the folder cannot be written.

    We fork before loading what only the supervisor needs: memory that both have is copied when
    one of them writes to it.
    """
    reader, writer = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.close(reader)
            from . import daemon

            status = daemon.supervise(options.folder, options.start_timeout, writer)
        except BaseException:
            print_exception()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(reader, 4096)
        if not part:
            log = options.folder.supervisor_log
            raise NodeError("error", "the supervisor died while arming", f"see {log}")
        line += part
    answer: Json = loads(line.decode("ascii"))
    if "error" in answer:
        raise NodeError(**answer["error"])
    return answer


def _start(options: Options) -> Json:
    """Asking twice is fine: the answer to the first may have been lost on the wire."""
    from . import control, snapshot

    folder = options.folder
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
    from . import journal

    for _, event in journal.read(folder.journal):
        if event["event"] == "started":
            return float(event["wall"])
    return None


def _status(options: Options) -> Json:
    from . import snapshot

    return snapshot.take(options.folder)


def _stacks(options: Options) -> Json:
    from . import stacks

    return stacks.take(options.folder)


def _stream(options: Options) -> None:
    from . import streaming

    streaming.stream(options.folder, options.journal, options.offsets, caller_of(options))


def _claim(options: Options) -> Json:
    """Everything was done before, by ``fence.admit``."""
    return {"claimed": True}


def caller_of(options: Options) -> Optional[fence.Caller]:
    """Who asks; None for somebody on the host, who gives no epoch."""
    return None if options.epoch is None else fence.Caller(options.epoch, options.owner)


def _stop(options: Options) -> Json:
    from . import stopping

    return stopping.stop(options.folder, options.grace, options.reason)


def _sweep(options: Options) -> Json:
    from . import stopping

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
    value = loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return {name: _offset(str(offset)) for name, offset in value.items()}


_ALWAYS = ("--run-dir", "--epoch", "--owner")
_OPTIONS: Dict[str, Tuple[str, Callable[[str], Any]]] = {
    "--run-dir": ("folder", _folder),
    "--epoch": ("epoch", _offset),
    "--owner": ("owner", str),
    "--start-timeout": ("start_timeout", _seconds),
    "--journal": ("journal", _offset),
    "--offsets": ("offsets", _offsets),
    "--grace": ("grace", _seconds),
    "--reason": ("reason", str),
}
_COMMANDS: Dict[str, Tuple[Action, Tuple[str, ...]]] = {
    "arm": (_arm, ("--start-timeout",)),
    "start": (_start, ()),
    "stream": (_stream, ("--journal", "--offsets")),
    "status": (_status, ()),
    "stacks": (_stacks, ()),
    "claim": (_claim, ()),
    "stop": (_stop, ("--grace", "--reason")),
    "sweep": (_sweep, ("--grace",)),
}


def _print(answer: Json) -> None:
    sys.stdout.write(dumps(answer).decode("ascii"))
    sys.stdout.flush()
