"""Answers that an evaluation already has: a file that a killed run leaves and the next one reads.

``answers_rank_N.jsonl``: a first line that says what was asked of which weights, then one line a
row. It goes when the report is written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Mapping

SCHEMA = 1


class AnswerFile:
    """Keeps the answers of one rank. ``asked`` is all that they depend on."""

    def __init__(self, file: Path, asked: Mapping[str, Any]) -> None:
        self.file = file
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str)
        self.head = {"schema": SCHEMA, "asked": hashlib.sha256(text.encode("utf-8")).hexdigest()}

    def open(self) -> Dict[int, str]:
        """Answers by row that are already there; those to other questions are dropped."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self.file)
        found: Dict[int, str] = {}
        if lines[:1] == [self.head]:
            found = {line["row"]: line["prediction"] for line in lines[1:]}
        # Written anew: what the kill left of a last line would spoil the next one.
        with self.file.open("w", encoding="utf-8") as out:
            out.write(json.dumps(self.head) + "\n")
        self.add(found)
        return found

    def add(self, answers: Mapping[int, str]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            for row, prediction in answers.items():
                line = {"row": row, "prediction": prediction}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """The report has all of them."""
        self.file.unlink()


def _whole_lines(file: Path) -> list:
    """The lines of a file up to the first that is not JSON; a kill may cut the last one."""
    lines = []
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return lines
    for line in data.split(b"\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
