"""The table of known error lines: loading, checking, and finding them in a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.errors import Location, SpecError
from orchestrator.problems import Problems, nearest

ROLES = ("root", "config", "symptom", "generic", "collateral")
NAMES = ("ranks", "rank", "server", "device", "present")
"""Groups of a regular expression that point at the culprit."""

_TEXTS = ("meaning", "cause", "remedy", "source")
_FLAGS = ("any_level", "may_follow", "wraps")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_MOST_SHAPES = 200_000


class SignatureError(SpecError):
    """A signature table is wrong."""

    code = "signatures"


@dataclass(frozen=True)
class Signature:
    """One kind of error line. The fields are told in ``signatures.yaml``."""

    id: str
    patterns: Tuple[re.Pattern[str], ...]
    role: str
    meaning: str
    cause: str
    remedy: str
    source: str
    any_level: bool = False
    may_follow: bool = False
    wraps: bool = False

    def search(self, line: str) -> Optional[re.Match[str]]:
        for pattern in self.patterns:
            match = pattern.search(line)
            if match is not None:
                return match
        return None


class SignatureTable:
    """Signatures in the order in which they are tried."""

    def __init__(self, signatures: Sequence[Signature]) -> None:
        self.signatures = tuple(signatures)
        patterns = [_shape_of_pattern(p.pattern) for s in self.signatures for p in s.patterns]
        union = "|".join(f"(?:{pattern})" for pattern in [*patterns, *_ALSO])
        self._any = re.compile(union)
        self._shapes: Dict[bytes, bool] = {}

    def __getitem__(self, name: str) -> Signature:
        for signature in self.signatures:
            if signature.id == name:
                return signature
        raise KeyError(name)

    def find(self, line: str, *, quiet: bool = False) -> Optional[Tuple[Signature, re.Match[str]]]:
        """The first signature that fits ``line``; of a ``quiet`` line (INFO, WARNING) only
        those that count on any level."""
        for signature in self.signatures:
            if quiet and not signature.any_level:
                continue
            match = signature.search(line)
            if match is not None:
                return signature, match
        match = None if quiet else _UNKNOWN_CODE.search(line)
        return None if match is None else (_unknown(match.group(1) or match.group(2)), match)

    def shape(self, line: bytes) -> Optional[bytes]:
        """The shape of ``line`` (its digits are 0) where a signature may fit it, else None.

        Log lines differ mostly in their numbers. So the answer is kept for each shape, and a
        million progress lines cost one search.
        """
        shape = line.translate(_DIGITS)
        known = self._shapes.get(shape)
        if known is None:
            known = self._any.search(shape.decode("utf-8", "replace")) is not None
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = known
        return shape if known else None


def builtin_file() -> Path:
    """The table that comes with the project."""
    return Path(__file__).with_name("signatures.yaml")


def load_table(files: Sequence[Path] = ()) -> SignatureTable:
    """The built-in table, with those of ``files`` before it.

    An entry with an id that exists replaces it; the last file wins. Raises SignatureError with
    all that is wrong.
    """
    entries: Dict[str, Signature] = {}
    own: List[str] = []
    for path in (builtin_file(), *files):
        for signature in read_file(path):
            entries[signature.id] = signature
            if path != builtin_file():
                own = [signature.id, *(name for name in own if name != signature.id)]
    first = [entries.pop(name) for name in reversed(own)]
    return SignatureTable([*first, *entries.values()])


def read_file(path: Path) -> List[Signature]:
    """The signatures of one YAML file. Raises SignatureError."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SignatureError(
            f"cannot read {path}: {error.strerror}", hint="give a file of signatures"
        ) from error
    except UnicodeDecodeError as error:
        raise SignatureError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, filename: str) -> List[Signature]:
    """The signatures in a YAML text. Raises SignatureError naming file, line and column."""
    from orchestrator.yaml_positions import load

    problems = Problems()
    document = load(text, filename, problems)
    found: List[Signature] = []
    if document is not None:
        top = document.value
        items = top.get("signatures") if isinstance(top, Mapping) else None
        if not isinstance(top, Mapping) or top.get("schema") != 1 or not isinstance(items, list):
            problems.add(
                "this is not a table of signatures",
                Location(filename, 1, 1),
                hint="begin with `schema: 1`, then a list `signatures:`",
            )
        else:
            for index, item in enumerate(items):
                where = document.place(("signatures", str(index)))
                signature = _signature(item, where, problems)
                if signature is not None:
                    if any(other.id == signature.id for other in found):
                        problems.add(f"`{signature.id}` is in the table twice", where)
                    found.append(signature)
    problems.raise_any(SignatureError, filename)
    return found


def _signature(item: object, where: Optional[Location], problems: Problems) -> Optional[Signature]:
    if not isinstance(item, Mapping):
        problems.add("an entry is not a mapping", where, hint="write id:, regex:, role: …")
        return None
    before = len(problems.found)
    known = ("id", "regex", "role", *_TEXTS, *_FLAGS)
    for key in item:
        if key not in known:
            problems.add(f"`{key}` is not a field of a signature", where, nearest(str(key), known))
    name = str(item.get("id") or "")
    if not re.fullmatch(r"[\w.-]{1,60}", name):
        problems.add("an entry needs an `id` of letters, digits, - and .", where)
    role = item.get("role")
    if role not in ROLES:
        problems.add(f"`{name}` has no known role", where, hint=f"one of {', '.join(ROLES)}")
    for key in ("meaning", "remedy"):
        if not isinstance(item.get(key), str) or not str(item[key]).strip():
            problems.add(f"`{name}` says no `{key}`", where, hint=f"add a sentence as `{key}:`")
    for key in _FLAGS:
        if not isinstance(item.get(key, False), bool):
            problems.add(f"`{key}` of `{name}` is not true or false", where)
    patterns = _patterns(item.get("regex"), name, where, problems)
    if len(problems.found) > before:
        return None
    texts = {key: str(item.get(key) or "").strip() for key in _TEXTS}
    flags = {key: bool(item.get(key, False)) for key in _FLAGS}
    return Signature(id=name, patterns=patterns, role=str(role), **texts, **flags)  # type: ignore[arg-type]


def _patterns(
    value: object, name: str, where: Optional[Location], problems: Problems
) -> Tuple[re.Pattern[str], ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        problems.add(f"`{name}` needs a `regex`: a text or a list of texts", where)
        return ()
    patterns: List[re.Pattern[str]] = []
    for text in texts:
        wrong = _wrong_with(text)
        if wrong:
            problems.add(f"the regex {text!r} of `{name}` {wrong}", where)
        else:
            patterns.append(re.compile(text))
    return tuple(patterns)


def _wrong_with(text: str) -> str:
    """What keeps ``text`` from being used as a pattern; empty for nothing."""
    try:
        compiled = re.compile(text)
        re.compile(_shape_of_pattern(text))
    except (re.error, OverflowError, RecursionError, DeprecationWarning) as error:
        return f"is not valid: {error}"
    if re.search(r"\(\?[aiLmsux]+\)", text):
        return "sets flags for all; write (?i:…) around what they are for"
    if re.search(r"\\[1-9]|\(\?P=|\(\?\(|\\x|\\u|\\N", text):
        return "refers back to a group or writes a character by its number, which is not supported"
    if re.search(r"\(\?<?![^)]*\d", re.sub(r"\{[^}]*\}|\\.", "", text)):
        return "has a number in a negative look-around, which is not supported"
    unknown = set(compiled.groupindex) - set(NAMES)
    if unknown:
        return f"has a group {sorted(unknown)[0]!r}; known are {', '.join(NAMES)}"
    if compiled.search("") is not None:
        return "fits every line"
    return ""


def _shape_of_pattern(text: str) -> str:
    """A pattern that fits the shape (digits are 0) of every line that ``text`` fits."""
    unnamed = re.sub(r"\(\?P<\w+>", "(?:", text).lstrip("^")
    return re.sub(r"\{[^}]*\}|\d", lambda m: m[0] if m[0][0] == "{" else "0", unnamed)


_UNKNOWN_CODE = re.compile(
    r"^(E[A-Z0-9]\d{4}): |^\[PID: ?\d+\].{20,40}[\w ]+\((E[A-Z0-9]\d{4})\): "
)
_ALSO = (
    "E[A-Z0-9]0000",  # codes that the table does not know
    r"rankSize\[|rankNum is \[|RANK_SIZE=|Userrank\[",  # lines that tell of the job's ranks
)


def _unknown(code: str) -> Signature:
    return Signature(
        id=code,
        patterns=(),
        role="root",
        meaning="an error code that the table does not know",
        cause="",
        remedy="read the lines around it; add the code to a table of your own (--signatures)",
        source="",
    )
