"""Raw log bytes as text that is safe to print."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_CONTROL_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(line: str) -> str:
    """``line`` with control characters shown as escapes, so that no log can drive a terminal.

    >>> printable("50%\\x1b[31m red")
    '50%\\\\x1b[31m red'
    """
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), line)


def printable_lines(text: str) -> str:
    """``printable`` for text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def escaped_json(text: str) -> str:
    """JSON text with the control characters that JSON allows, and we do not, as its escapes."""
    return _CONTROL_IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def decode_line(line: bytes) -> str:
    """One raw line (without its end) as printable text; of a progress bar, its last state."""
    text = line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace")
    return printable(text)
