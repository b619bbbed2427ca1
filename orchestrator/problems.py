"""All that is wrong with an input file, gathered so that a user mends it in one go."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Iterable, List, Optional, Type

from orchestrator.errors import Location, SpecError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a sentence, its place, and what to do about it."""

    message: str
    location: Optional[Location] = None
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" if self.location else self.message


class Problems:
    """Collects problems; ``raise_any`` turns them into one error.

    The same problem at the same place is kept once: a bad default is wrong for every host.
    """

    def __init__(self) -> None:
        self.found: List[Problem] = []

    def add(self, message: str, location: Optional[Location] = None, hint: str = "") -> None:
        problem = Problem(message, location, hint)
        if problem not in self.found:
            self.found.append(problem)

    def raise_any(self, error: Type[SpecError], subject: str) -> None:
        """Raise ``error`` if anything was found; ``subject`` names what is wrong as a whole."""
        if not self.found:
            return
        if len(self.found) == 1:
            only = self.found[0]
            raise error(only.message, hint=only.hint, location=only.location)
        lines = [f"{subject} has {len(self.found)} problems:"]
        for problem in sorted(self.found, key=_place):
            lines.append(f"  {problem}")
            if problem.hint:
                lines.append(f"      {problem.hint}")
        raise error("\n".join(lines), hint="mend them all, then run the command again")


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean `x`?`` for a misspelt ``word``, else the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    if len(names) > 16:
        return f"known are {', '.join(names[:16])}, … ({len(names)} in all)"
    return f"known are {', '.join(names)}" if names else ""


def shown(text: str, limit: int = 60) -> str:
    """``text`` fit for a message: quoted, control characters escaped, long text cut."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{escaped[:limit]}…'" if len(escaped) > limit else f"'{escaped}'"


def is_control(char: str) -> bool:
    """Whether ``char`` is a control character or half a surrogate pair."""
    code = ord(char)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000


def _place(problem: Problem) -> tuple[int, int]:
    where = problem.location
    return (where.line, where.column) if where else (0, 0)
