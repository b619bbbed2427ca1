"""Shell completion: commands and options by click; run ids and schedules from the record here,
hosts and groups from the inventory that the command line names."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from orchestrator.errors import OrchError

VARIABLE = "_GLM2_ORCH_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
_INSTALL = """\
# Completion of glm2-orch for {shell}. To have it in every shell:
#   {how}
"""
_HOW = {
    "bash": "echo 'eval \"$(glm2-orch completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(glm2-orch completion zsh)\"' >> ~/.zshrc   # after compinit",
    "fish": "glm2-orch completion fish > ~/.config/fish/completions/glm2-orch.fish",
}
_MOST_RUNS = 50


class _Named(click.types.StringParamType):
    """Text that is completed by what there is; nothing is checked here."""

    def names(self, ctx: click.Context) -> List[str]:
        raise NotImplementedError

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> List[CompletionItem]:
        # Whoever presses Tab wants no error message in the middle of the line.
        try:
            names = self.names(ctx)
        except (OrchError, OSError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class _Run(_Named):
    def names(self, ctx: click.Context) -> List[str]:
        """The newest runs, newest first, and ``latest``."""
        from orchestrator.runs.layout import RunStore, home

        newest = RunStore(home()).names()[-_MOST_RUNS:]
        return ["latest", *reversed(newest)] if newest else []


class _Schedule(_Named):
    def names(self, ctx: click.Context) -> List[str]:
        from orchestrator.runs.layout import home
        from orchestrator.schedules.store import ScheduleStore

        return ScheduleStore(home()).names()


class _Host(_Named):
    def names(self, ctx: click.Context) -> List[str]:
        from orchestrator.cli.request import read_inventory

        file = ctx.params.get("inventory_file")
        if not file:
            return []
        inventory = read_inventory(file, None)
        groups: Dict[str, None] = {}
        for host in (*inventory.hosts, *inventory.spares):
            groups.update(dict.fromkeys(host.groups))
        return [*groups, *(host.name for host in (*inventory.hosts, *inventory.spares))]


class _InventoryFile(_Named):
    """The names of shipped inventories; the shell itself completes files."""

    def names(self, ctx: click.Context) -> List[str]:
        from orchestrator.resources import resource_dir

        return sorted(path.stem for path in resource_dir("inventories").glob("*.yaml"))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> List[CompletionItem]:
        shipped = [] if "/" in incomplete else super().shell_complete(ctx, param, incomplete)
        return [*shipped, CompletionItem(incomplete, type="file")]


RUN, SCHEDULE, HOST, INVENTORY_FILE = _Run(), _Schedule(), _Host(), _InventoryFile()


def whole_cli() -> click.Group:
    """All of glm2-orch, which the command that runs now is part of."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    return root


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, run ids, schedules, and hosts of the inventory that the
    command line names. The first lines of the script say where to put it.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the shells of the choice"
    click.echo(_INSTALL.format(shell=shell, how=_HOW[shell]), nl=False)
    click.echo(kind(whole_cli(), {}, "glm2-orch", VARIABLE).source())


def complete(cli: click.Command, environ: Mapping[str, str]) -> Optional[int]:
    """Answer the shell's question where it asks one; the exit status, or None: no question."""
    instruction = environ.get(VARIABLE)
    return shell_complete(cli, {}, "glm2-orch", VARIABLE, instruction) if instruction else None
