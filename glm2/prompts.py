"""What ``--predict_data`` means."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

from glm2.errors import UsageError


def read_prompts(given: Sequence[str]) -> List[str]:
    """The prompts of ``--predict_data``: texts, or files with one on each line.

    A backslash and n mean a line break, as the guide's commands write them in a shell.
    UsageError when there is no text, or a file that is none.
    """
    texts: List[str] = []
    for item in given:
        if _is_file(item):
            texts += [line for line in _lines(Path(item)) if line.strip()]
        else:
            texts.append(item)
    if not any(text.strip() for text in texts):
        raise UsageError(
            "predict needs --predict_data"
            if not given
            else f"--predict_data {' '.join(given)} holds no text",
            hint=r'for example --predict_data "[Round 1]\n\n问：你好\n\n答："',
        )
    return [text.replace("\\n", "\n") for text in texts]


def _lines(file: Path) -> List[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--predict_data {file} is no text in UTF-8: {error.reason} at byte {error.start}",
            hint="save it as UTF-8, with a question on each line",
        ) from error


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte in it
        return False
