"""JSON that remembers where everything stood, read past its mistakes.

People edit rank tables by hand: comments, an ellipsis, a lost brace. ``read_json`` says what each
mistake is and where, and goes on as a person would, so that the rest can be checked as well.
For valid JSON the value is that of ``json.loads``.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

MOST_FAULTS = 25
"""Reading stops after so many mistakes: that is no JSON file."""

_DEEPEST = 64


class Scalar(NamedTuple):
    """A string, number, true, false or null; ``at`` is the offset of its first character."""

    value: Union[str, int, float, bool, None]
    at: int


class Array(NamedTuple):
    items: List[Value]
    at: int


class Object(NamedTuple):
    members: Dict[str, Value]
    keys: Dict[str, int]
    """Offset of each key."""
    at: int


Value = Union[Scalar, Array, Object]


class Fault(NamedTuple):
    """One mistake of JSON: its kind, a sentence, what to do, and its offset.

    Kinds: ``comment``, ``ellipsis``, ``bracket``, ``comma``, ``quote``, ``repeated``, ``syntax``.
    """

    kind: str
    message: str
    hint: str
    at: int


@dataclass
class Reading:
    """What was read from a text: the value (None: nothing there), and all mistakes."""

    text: str
    root: Optional[Value] = None
    faults: List[Fault] = field(default_factory=list)
    _starts: List[int] = field(default_factory=list)

    def place(self, at: int) -> Tuple[int, int]:
        """1-based line and column of an offset."""
        if not self._starts:
            self._starts = [0, *(found.end() for found in re.finditer("\n", self.text))]
        line = bisect.bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1


def read_json(text: str) -> Reading:
    """The value of a JSON ``text``, with every mistake that could be read past."""
    reading = Reading(text)
    with contextlib.suppress(_GiveUp):
        _Parser(reading, _tokens(reading)).document()
    reading.faults.sort(key=lambda fault: fault.at)
    return reading


def plain(value: Value) -> object:
    """The value without positions, as ``json.loads`` gives it."""
    if isinstance(value, Object):
        return {key: plain(item) for key, item in value.members.items()}
    if isinstance(value, Array):
        return [plain(item) for item in value.items]
    return value.value


class _GiveUp(Exception):
    """Too many mistakes, or too deep."""


class _Token(NamedTuple):
    kind: str
    """``string``, ``word`` (numbers too), ``ellipsis``, one of ``{}[]:,``, or ``end``."""
    value: str
    at: int


_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<string>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrtu])*")
      | (?P<mark>[{}\[\]:,])
      | (?P<comment>\#[^\n]*|//[^\n]*|/\*.*?(?:\*/|\Z))
      | (?P<ellipsis>\.{2,}|…+)
      | (?P<wide>[：，；;｛｝［］])
      | (?P<word>[^\s{}\[\]:,"'\#/…“”‘’：，；;｛｝［］]+)
      | (?P<broken>["'“”‘’](?:[^"'“”‘’\n\\]|\\.)*["'“”‘’]?)
      | (?P<other>[^ \t\r\n])
    )""",
    re.VERBOSE | re.DOTALL,
)
_WIDE = dict(zip("：，；;｛｝［］", ":,,,{}[]"))
"""What an input method writes, and what is meant."""
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_CONSTANTS: Dict[str, Optional[bool]] = {"true": True, "false": False, "null": None}


def _tokens(reading: Reading) -> List[_Token]:
    tokens: List[_Token] = []
    text = reading.text
    if text.startswith("\ufeff"):
        _note(reading, "syntax", "the file starts with a byte order mark", "save it without", 0)
    at = 1 if text.startswith("\ufeff") else 0
    for found in _TOKEN.finditer(text, at):
        kind = found.lastgroup or "other"
        value = found.group(kind)
        start = found.start(kind)
        if kind == "string":
            tokens.append(_Token("string", _unescape(reading, value, start), start))
        elif kind == "mark":
            tokens.append(_Token(value, value, start))
        elif kind == "wide":
            meant = _WIDE[value]
            _note(reading, "syntax", f"`{value}` is not JSON", f"write `{meant}`", start)
            tokens.append(_Token(meant, meant, start))
        elif kind == "comment":
            _note(reading, "comment", "JSON has no comments", "delete the comment", start)
        elif kind == "broken":
            tokens.append(_broken_string(reading, value, start))
        elif kind in ("word", "ellipsis"):
            tokens.append(_Token(kind, value, start))
        else:
            _note(reading, "syntax", f"{value!a} cannot stand here", "delete it", start)
    tokens.append(_Token("end", "", len(text.rstrip())))
    return tokens


def _unescape(reading: Reading, literal: str, at: int) -> str:
    if "\\" not in literal:
        return literal[1:-1]
    try:
        return str(json.loads(literal))
    except ValueError:
        _note(reading, "syntax", "malformed escape in this text", "write \\u and 4 digits", at)
        return literal[1:-1]


def _broken_string(reading: Reading, literal: str, at: int) -> _Token:
    """Text that is no JSON string: other quotes, no closing quote, or control characters."""
    closed = len(literal) > 1 and literal[-1] in "\"'“”‘’"
    if not closed:
        message, hint = "this text has no closing quote", 'close it with `"`'
    elif literal[0] == literal[-1] == '"':
        message, hint = "control character or unknown escape in this text", "remove it"
    else:
        message, hint = "text in JSON stands in straight double quotes", 'use `"`'
    _note(reading, "quote", message, hint, at)
    return _Token("string", literal[1:-1] if closed else literal[1:].rstrip(", \t\r"), at)


def _note(reading: Reading, kind: str, message: str, hint: str, at: int) -> None:
    if len(reading.faults) >= MOST_FAULTS:
        raise _GiveUp
    reading.faults.append(Fault(kind, message, hint, at))


class _Parser:
    def __init__(self, reading: Reading, tokens: List[_Token]) -> None:
        self.reading = reading
        self.tokens = tokens
        self.next = 0
        self.open: List[_Token] = []
        """Brackets that are open, outermost first."""

    def document(self) -> None:
        first = self.tokens[0]
        if first.kind == "end":
            self.note("syntax", "the file is empty", "write a JSON object", first)
            return
        if first.kind in ("string", "word") and self.tokens[1].kind == ":":
            self.note("bracket", "the opening `{` is missing", "put `{` before this", first)
            self.reading.root = self.object(_Token("{", "{", first.at), implied=True)
        else:
            self.reading.root = self.value()
        rest = self.peek()
        if rest.kind in ("}", "]"):
            self.note("bracket", f"`{rest.kind}` closes nothing", "delete it", rest)
        elif rest.kind != "end":
            self.note("syntax", "there is text behind the end of the JSON", "delete it", rest)

    def value(self) -> Value:
        token = self.take()
        if token.kind == "{":
            return self.object(token)
        if token.kind == "[":
            return self.array(token)
        if token.kind == "string":
            return Scalar(token.value, token.at)
        if token.kind == "word":
            return self.word(token)
        self.next -= 1
        self.note("syntax", f"a value is missing before {_name(token)}", "write it", token)
        if token.kind in (":", "ellipsis"):
            self.next += 1
        return Scalar(None, token.at)

    def word(self, token: _Token) -> Scalar:
        if token.value in _CONSTANTS:
            return Scalar(_CONSTANTS[token.value], token.at)
        if _NUMBER.fullmatch(token.value):
            try:
                return Scalar(json.loads(token.value), token.at)
            except ValueError:  # Python refuses integers of many thousand digits
                pass
        self.note("quote", f"{_name(token)} is not in quotes", 'put it in `"`', token)
        return Scalar(token.value, token.at)

    def object(self, opening: _Token, implied: bool = False) -> Object:
        made = Object({}, {}, opening.at)
        self.enter(opening)
        while not self.closes("}", implied):
            token = self.take()
            if token.kind == ",":
                self.note("comma", "there is a comma too many", "delete it", token)
            elif token.kind == "ellipsis":
                self.ellipsis(token, "members")
            elif token.kind in ("string", "word"):
                self.member(made, token)
                self.separator("}")
            else:
                self.next -= 1
                self.note("syntax", f"a key is missing before {_name(token)}", "write it", token)
                if token.kind == ":":
                    self.next += 1
                self.value()
                self.separator("}")
        self.open.pop()
        return made

    def member(self, made: Object, key: _Token) -> None:
        if key.kind == "word":
            self.note("quote", f"the key {_name(key)} is not in quotes", 'put it in `"`', key)
        if self.peek().kind == ":":
            self.next += 1
        else:
            self.note("syntax", f"`:` is missing after {_name(key)}", "write it", self.peek())
            if self.peek().kind in (",", "}", "]", "end"):
                return
        value = self.value()
        if key.value in made.keys:
            line, _ = self.reading.place(made.keys[key.value])
            message = f"key {_name(key)} is given twice, first in line {line}"
            self.note("repeated", message, "delete one", key)
        made.members[key.value] = value
        made.keys[key.value] = key.at

    def array(self, opening: _Token) -> Array:
        made = Array([], opening.at)
        self.enter(opening)
        while not self.closes("]"):
            token = self.peek()
            if token.kind == ",":
                self.next += 1
                self.note("comma", "there is a comma too many", "delete it", token)
            elif token.kind == "ellipsis":
                self.next += 1
                self.ellipsis(token, "items")
            elif token.kind == "string" and self.tokens[self.next + 1].kind == ":":
                self.note("bracket", f"`{{` is missing before {_name(token)}", "write it", token)
                made.items.append(self.object(_Token("{", "{", token.at), implied=True))
                self.separator("]")
            else:
                made.items.append(self.value())
                self.separator("]")
        self.open.pop()
        return made

    def enter(self, opening: _Token) -> None:
        self.open.append(opening)
        if len(self.open) > _DEEPEST:
            self.note("syntax", f"nested deeper than {_DEEPEST}", "this is no rank table", opening)
            raise _GiveUp

    def closes(self, closer: str, implied: bool = False) -> bool:
        """Whether the innermost bracket ends here, rightly or because its closer was lost."""
        token = self.peek()
        if token.kind == closer:
            self.next += 1
            return True
        if token.kind not in ("}", "]", "end"):
            return False
        opening = self.open[-1]
        line, _ = self.reading.place(opening.at)
        if token.kind == "end":
            if not implied:
                message = f"`{opening.kind}` of line {line} is never closed: `{closer}` is missing"
                self.note("bracket", message, f"add `{closer}`", token)
            return True
        if any(outer.kind != opening.kind for outer in self.open[:-1]):
            message = (
                f"`{closer}` is missing before this; it closes `{opening.kind}` of line {line}"
            )
            self.note("bracket", message, f"add `{closer}`", token)
            return True
        self.next += 1
        self.note("bracket", f"`{token.kind}` closes nothing", "delete it", token)
        return self.closes(closer, implied)

    def separator(self, closer: str) -> None:
        """The comma between members or items; a superfluous one before ``closer`` is noted."""
        token = self.peek()
        if token.kind == ",":
            self.next += 1
            if self.peek().kind in ("}", "]"):
                self.note("comma", f"there is a comma before `{closer}`", "delete it", token)
        elif token.kind not in ("}", "]", "end", "ellipsis"):
            self.note("comma", f"a comma is missing before {_name(token)}", "write it", token)
            if token.kind == ":":
                self.next += 1

    def ellipsis(self, token: _Token, what: str) -> None:
        self.note("ellipsis", f"an ellipsis stands for {what} left out", "write all of them", token)
        if self.peek().kind == ",":
            self.next += 1

    def peek(self) -> _Token:
        return self.tokens[self.next]

    def take(self) -> _Token:
        token = self.tokens[self.next]
        if token.kind != "end":
            self.next += 1
        return token

    def note(self, kind: str, message: str, hint: str, token: _Token) -> None:
        _note(self.reading, kind, message, hint, token.at)


def _name(token: _Token) -> str:
    if token.kind == "end":
        return "the end of the file"
    text = token.value if token.kind in ("string", "word") else token.kind
    return f"`{text[:40].encode('unicode_escape').decode()}`"
