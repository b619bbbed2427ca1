"""What arming needs of ``json``, ``signal`` and ``socket``, from the C modules they are made of.

Importing those three, with ``enum`` and ``re`` behind them, takes twice as long as starting Python,
and a launch arms hundreds of hosts. For the same reason no module that arming imports has
``typing``, NamedTuples, ``contextlib`` or ``ctypes`` at its top. Where a Python has no such C
module, or another kind of it, the whole one serves.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal
    import socket as socket
    from typing import Any
else:
    try:
        import _signal as signal
        import _socket as socket
    except ImportError:
        import signal as signal
        import socket as socket


def loads(text: str) -> Any:
    """As ``json.loads``; raises ValueError."""
    if _scan is not None:
        try:
            value, end = _scan(text, 0)
            if not text[end:].strip(" \t\r\n"):
                return value
        except (StopIteration, ValueError, SystemError):
            pass  # it has no words for what is wrong: those are in `json`, and it may not be loaded
    import json

    return json.loads(text)


def dumps(value: Any) -> bytes:
    """A line of compact JSON, ASCII only, with its end."""
    if _write is not None:
        text = "".join(_write(value, 0))
    else:
        import json

        text = json.dumps(value, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


class _AsJson:
    """How ``json`` reads: what ``json.JSONDecoder()`` has."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan: Any
_write: Any
try:
    import _json

    # A debug build of Python, which counts references, aborts where others raise SystemError.
    _counts = hasattr(sys, "gettotalrefcount")
    _scan = None if _counts else _json.make_scanner(_AsJson)  # type: ignore[arg-type]
    _text = _json.encode_basestring_ascii
    _write = _json.make_encoder(None, _refuse, _text, None, ":", ",", False, False, True)
except (ImportError, AttributeError, TypeError):
    _scan = _write = None
