"""Pieces of Markdown, and what the code says of itself in docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, Dict, List, Mapping, Sequence


def field_docs(kind: type) -> Mapping[str, str]:
    """The texts that stand below the fields of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    names = {field.name for field in dataclasses.fields(kind)}
    found: Dict[str, str] = {}
    assert isinstance(tree, ast.ClassDef)
    for before, after in zip(tree.body, tree.body[1:]):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            text = ast.get_docstring(ast.Module([after], []), clean=True)  # type: ignore[arg-type]
            if text and before.target.id in names:
                found[before.target.id] = text.replace("``", "`")
    return found


def code_of(module: Any) -> str:
    """The indented block of a module's docstring, as a fenced one."""
    text = (module.__doc__ or "").partition("::\n\n")[2]
    block = []
    for line in text.splitlines():
        if line and not line.startswith("    "):
            break
        block.append(line)
    return "```\n" + textwrap.dedent("\n".join(block)).strip("\n") + "\n```"


def paragraphs(text: str) -> str:
    """Text of a help page: prose, and its ``\\b`` blocks fenced."""
    parts = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            parts.append("```\n" + textwrap.dedent(part[1:].strip("\n")) + "\n```")
        else:
            parts.append(part)
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table; without rows there is none."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return [
        *(
            "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in line) + " |"
            for line in lines
        ),
        "",
    ]
