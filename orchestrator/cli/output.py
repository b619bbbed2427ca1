"""Data on stdout, talk on stderr; tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Optional, TypeVar

import click

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

F = TypeVar("F", bound=Callable[..., Any])


def output_option(*formats: str) -> Callable[[F], F]:
    """``-o/--output``, and ``--json`` for short. The command gets ``output: str``."""
    choices = formats or ("table", "json")
    short = "json" if "json" in choices else "jsonl"

    def remember(ctx: click.Context, _param: click.Parameter, value: str) -> str:
        ctx.find_root().meta["glm2.output"] = value
        return value

    def shorthand(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["glm2.output"] = ctx.params["output"] = short

    def decorate(function: F) -> F:
        function = click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=shorthand,
            help=f"Short for -o {short}.",
        )(function)
        return click.option(
            "-o",
            "--output",
            type=click.Choice(choices),
            default=choices[0],
            show_default=True,
            is_eager=True,
            callback=remember,
            help="Form of what is printed on stdout.",
        )(function)

    return decorate


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object with ``schema`` first; control characters cannot reach the terminal.

    It is the only one on stdout: an error behind it is told on stderr.
    """
    context = click.get_current_context(silent=True)
    if context is not None:
        context.find_root().meta["glm2.printed"] = True
    click.echo(json_text({"schema": 1, **data}, indent=2))


def json_text(data: Mapping[str, Any], indent: Optional[int] = None) -> str:
    """JSON in which whatever could drive a terminal is escaped, not only what JSON escapes."""
    from orchestrator.logs.text import escaped_json

    return escaped_json(json.dumps(data, indent=indent, ensure_ascii=False, default=str))


@contextmanager
def writing_to(target: str) -> Iterator[None]:
    """Turns what the file system refuses into a UsageError that names ``target``."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror}", hint="give a path that you can write"
        ) from error


def say(message: str) -> None:
    """Talk on stderr, usually one line. Control characters are shown escaped: a message may
    quote what a host or a file said."""
    from orchestrator.logs.text import printable_lines

    click.echo(printable_lines(message), err=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console that follows NO_COLOR and CLICOLOR, and does not wrap when piped.

    Texts are shown as they are: no markup of rich in them counts, and control characters are
    escaped. What is styled on purpose is a ``rich.text.Text``.
    """
    from rich.console import Console

    from orchestrator.logs.text import printable_lines

    class Plainly(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable_lines(text), **{**options, "markup": False})

    stream = sys.stderr if stderr else sys.stdout
    plain = not stream.isatty()
    no_color: Optional[bool] = True if os.environ.get("CLICOLOR") == "0" else None
    return Plainly(
        file=stream, no_color=no_color, highlight=False, width=200 if plain else None, emoji=False
    )


def seconds(value: Optional[float]) -> str:
    """A duration for people: ``0.4 s``, ``2 m 05 s``, ``3 h 20 m``."""
    if value is None:
        return "?"
    if value < 10:
        return f"{value:.1f} s"
    whole = int(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
