"""Files from ``templates/``: values are filled in and quoted, nothing is decided there."""

from __future__ import annotations

import functools
import json
import shlex
from typing import Iterable, Tuple

import jinja2

from orchestrator.resources import resource_dir


def render(template: str, **values: object) -> str:
    """Text of ``templates/<template>`` with ``values``; a missing one is an error of ours."""
    return _environment().get_template(template).render(values)


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_dir("templates")),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the files are shell, not HTML: every value passes a quoting filter
    )
    environment.filters.update(
        quoted=shlex.quote,
        words=_words,
        exports=_exports,
        prepends=_prepends,
        crontab_words=_crontab_words,
        unit_words=_unit_words,
        unit_path=_unit_path,
        yaml=_yaml,
        comment=_comment,
    )
    return environment


def _words(argv: Iterable[str]) -> str:
    """``argv`` as words of a shell command."""
    return " ".join(shlex.quote(word) for word in argv)


def _exports(variables: Iterable[Tuple[str, str]]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables)


def _prepends(paths: Iterable[Tuple[str, str]]) -> str:
    """Lines that put a folder in front of a search path and keep what was there."""
    return "\n".join(
        f'export {name}={shlex.quote(folder)}"${{{name}:+:${name}}}"' for name, folder in paths
    )


def _crontab_words(argv: Iterable[str]) -> str:
    """Words of a command in a crontab, where ``%`` would be the end of the line."""
    return _words(argv).replace("%", r"\%")


def _unit_words(argv: Iterable[str]) -> str:
    """Words of ``ExecStart=``: quoted, with the characters that systemd expands doubled."""
    return " ".join(f'"{_unit_path(word).replace("$", "$$")}"' for word in argv)


def _unit_path(text: str) -> str:
    """A path in a unit: ``%`` is a specifier, and backslash and quote are escaped."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _yaml(text: str) -> str:
    """``text`` as a YAML scalar; a string of JSON is one of YAML too."""
    return json.dumps(text)


def _comment(text: str) -> str:
    """Text that cannot end the comment it stands in."""
    return "".join(char if char.isprintable() else "?" for char in text)
