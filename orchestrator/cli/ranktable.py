"""``glm2-orch ranktable``: make, merge, check and convert HCCL rank tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Container, Dict, List, Optional, Sequence, Tuple

import click

from orchestrator.cli.output import output_option, print_json, say
from orchestrator.errors import RankTableError, UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import Host
    from orchestrator.planning.facts import HostFacts
    from orchestrator.planning.ranktable import RankTable
    from orchestrator.planning.ranktable_lint import CheckedTable

JOBSTARTS = (
    Path("/user/config/jobstart_hccl.json"),
    Path("/user/serverid/devindex/config/hccl.json"),
)
"""Where ModelArts and Kubernetes put the group_list of a job."""

_FILES = click.argument("files", nargs=-1, required=True, metavar="FILE...")
_OUT = click.option(
    "--out", "out_file", metavar="FILE", help="Write there; default: standard output."
)
_ORDER = click.option(
    "--order",
    type=click.Choice(("server_id", "pod")),
    help="Number ranks anew: by server_id, or by the number of the pod as ModelArts does.",
)


@click.group()
def ranktable() -> None:
    """Make, merge, check and convert the rank tables of HCCL."""


@ranktable.command()
@click.option(
    "-i", "--inventory", "inventory_file", metavar="FILE", help="All hosts of it at once."
)
@click.option("--limit", metavar="PATTERN", help="Only these hosts or groups of the inventory.")
@click.option("--device_num", "--device-num", metavar="RANGE", help="Devices here, e.g. '[0,8)'.")
@click.option(
    "--visible_devices",
    "--visible-devices",
    metavar="LIST",
    help="Physical ids that --device_num counts, e.g. 4,5,6,7.",
)
@click.option("--server_ip", "--server-ip", metavar="IP", help="server_id of this host.")
@click.option("--jobstart", metavar="FILE", help="Take ModelArts' group_list instead.")
@_ORDER
@_OUT
@output_option("table", "json")
def generate(
    inventory_file: Optional[str],
    limit: Optional[str],
    device_num: Optional[str],
    visible_devices: Optional[str],
    server_ip: Optional[str],
    jobstart: Optional[str],
    order: Optional[str],
    out_file: Optional[str],
    output: str,
) -> None:
    """Make a rank table from the device IPs of this host, or of all hosts of an inventory.

    The IPs come from hccn_tool, else /etc/hccn.conf. In a job of ModelArts or Kubernetes its own
    table (/user/config/jobstart_hccl.json) is taken, unless an option says otherwise.
    """
    here = (device_num, visible_devices, server_ip)
    if inventory_file is not None and any(option is not None for option in (*here, jobstart)):
        raise UsageError(
            "--inventory says which hosts and devices there are",
            hint="leave out --device_num, --visible_devices, --server_ip and --jobstart",
        )
    if jobstart is None and inventory_file is None and here == (None,) * 3:
        jobstart = next((str(path) for path in JOBSTARTS if path.exists()), None)
        if jobstart is not None:
            say(f"taking the table of this job, {jobstart}")
    if jobstart is not None:
        from orchestrator.planning.ranktable_convert import usable

        table = usable(_check_file(jobstart), order)
    elif inventory_file is not None:
        table = _cluster(_inventory_hosts(inventory_file, limit))
    else:
        table = _cluster([_this_host(device_num, visible_devices, server_ip)])
    _write_proven(table, out_file, output)


@ranktable.command()
@_FILES
@_OUT
@output_option("table", "json")
def merge(files: Tuple[str, ...], out_file: Optional[str], output: str) -> None:
    """Merge the tables of several servers into one of version 1.0.

    The order of the files does not matter: ranks follow the dictionary order of server_id.
    """
    from orchestrator.planning.ranktable_convert import merge_files

    if out_file is not None and Path(out_file).resolve() in [Path(f).resolve() for f in files]:
        raise UsageError(
            f"{out_file} is both an input and the output", hint="write to another file"
        )
    _write_proven(merge_files([_check_file(file) for file in files]), out_file, output)


@ranktable.command()
@_FILES
@click.option(
    "--against-hosts", "inventory_file", metavar="INVENTORY", help="Compare with the hosts' NICs."
)
@output_option("table", "json", "sarif")
@click.pass_context
def check(
    ctx: click.Context, files: Tuple[str, ...], inventory_file: Optional[str], output: str
) -> None:
    """Report everything that is wrong with rank tables, before HCCL does after minutes.

    Exit status 3 when there is an error, 0 with warnings only.
    """
    from importlib.metadata import version

    from orchestrator.planning import ranktable_report as report

    checks = [_check_file(file) for file in files]
    if inventory_file is not None:
        named = {server.server_id for checked in checks for server in checked.table.servers}
        hosts = _hosts_and_spares(inventory_file, named)
        facts, unasked = _facts_of_some(hosts)
        checks = [_check_file(f, hosts=hosts, facts=facts, unasked=unasked) for f in files]
    if output == "json":
        click.echo(report.as_json(checks), nl=False)
    elif output == "sarif":
        click.echo(report.as_sarif(checks, version("glm2-orch")), nl=False)
    else:
        click.echo(report.as_text(checks), nl=False)
    say(report.summary(checks))
    if any(checked.errors for checked in checks):
        ctx.exit(RankTableError.exit_status)


@ranktable.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--to",
    "form",
    type=click.Choice(("1.0", "1.2", "group_list", "lab")),
    default="1.0",
    show_default=True,
    help="Form to write; group_list and lab are those of ModelArts and Kubernetes.",
)
@_ORDER
@_OUT
@output_option("table", "json")
def convert(
    file: str, form: str, order: Optional[str], out_file: Optional[str], output: str
) -> None:
    """Write a rank table in another form. Stated ranks are kept, unless --order is given."""
    from orchestrator.planning.ranktable_convert import convert as converted

    _write(converted(_check_file(file), form, order), out_file, output)


@ranktable.command()
@output_option("table", "json")
def rules(output: str) -> None:
    """Print the documentation of all rules that `check` knows (Markdown)."""
    from orchestrator.planning.ranktable_report import rules_page
    from orchestrator.planning.ranktable_rules import RULES

    if output == "json":
        print_json({"rules": [vars(rule) for rule in RULES.values()]})
    else:
        click.echo(rules_page(), nl=False)


def _check_file(file: str, **live: Any) -> CheckedTable:
    """``live`` is what `check_table` compares with."""
    from orchestrator.planning.ranktable_lint import check_table, unreadable

    try:
        data = Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return unreadable(file, getattr(error, "strerror", None) or str(error))
    return check_table(data, file, **live)


def _write_proven(table: RankTable, out_file: Optional[str], output: str) -> None:
    """Write a table that `check` finds no error in, and say what it warns of."""
    from orchestrator.planning.ranktable_convert import proven

    for finding in proven(table, out_file or "hccl.json").findings:
        say(f"{finding.rule.severity} {finding.rule.code}: {finding.message}: {finding.remedy}")
    _write(table.to_json(), out_file, output)
    say(_size(table))


def _size(table: RankTable) -> str:
    ranks, servers = table.world_size, len(table.servers)
    return f"{ranks} rank{'s' * (ranks != 1)} on {servers} server{'s' * (servers != 1)}"


def _write(text: str, out_file: Optional[str], output: str) -> None:
    """The table itself on stdout, or in a file: then ``output`` json names the file there."""
    if out_file is None:
        click.echo(text, nl=False)
        return
    try:
        Path(out_file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out_file}: {error.strerror}") from None
    if output == "json":
        print_json({"file": out_file})
    say(f"wrote {out_file}")


def _inventory_hosts(inventory_file: str, limit: Optional[str]) -> Sequence[Host]:
    from orchestrator.cli.request import read_inventory

    return read_inventory(inventory_file, limit).hosts


def _hosts_and_spares(inventory_file: str, named: Container[Optional[str]]) -> Sequence[Host]:
    """All hosts of the inventory, and the spares among the servers that are ``named``."""
    from orchestrator.cli.request import read_inventory

    inventory = read_inventory(inventory_file, None)
    spares = (spare for spare in inventory.spares if spare.server_id in named)
    return (*inventory.hosts, *spares)


def _cluster(hosts: Sequence[Host]) -> RankTable:
    from orchestrator.planning.cluster_table import cluster_table

    return cluster_table(hosts, _facts(hosts), need_ips=True)


def _facts_of_some(hosts: Sequence[Host]) -> Tuple[Dict[str, HostFacts], Dict[str, str]]:
    """What the hosts report now, and why others do not. Raises when none of them does."""
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.gather import gather_some
    from orchestrator.engine.hosts import connected
    from orchestrator.errors import one_error
    from orchestrator.planning.environment import SCHEDULER_PORT
    from orchestrator.planning.facts import parse_facts

    with connected(hosts) as transports, steps_shown() as progress:
        raw, errors = gather_some(
            hosts, transports, scheduler_port=SCHEDULER_PORT, progress=progress
        )
    if not raw:
        raise one_error("no host could be asked", list(errors.values()))
    facts = {name: parse_facts(fields, host=name) for name, fields in raw.items()}
    return facts, {name: error.message for name, error in errors.items()}


def _facts(hosts: Sequence[Host]) -> Dict[str, HostFacts]:
    """What the hosts report now."""
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.gather import gather
    from orchestrator.engine.hosts import connected
    from orchestrator.planning.environment import SCHEDULER_PORT
    from orchestrator.planning.facts import parse_facts

    with connected(hosts) as transports, steps_shown() as progress:
        raw = gather(hosts, transports, scheduler_port=SCHEDULER_PORT, progress=progress)
    return {name: parse_facts(fields, host=name) for name, fields in raw.items()}


def _this_host(
    device_num: Optional[str], visible_devices: Optional[str], server_ip: Optional[str]
) -> Host:
    from orchestrator.inventory import Host, ServerId, SshAddress

    address = server_ip or _own_address()
    return Host(
        name="localhost",
        address=SshAddress(address),
        server_id=ServerId(address),
        devices=_chosen(device_num, visible_devices),
        device_target="Ascend",
        workdir=str(Path.cwd()),
        python=sys.executable,
        connection="local",
    )


def _chosen(device_num: Optional[str], visible_devices: Optional[str]) -> Tuple[int, ...]:
    """Physical ids of the devices: ``device_num`` counts within ``visible_devices``."""
    if visible_devices is None:
        return _parsed("--device_num", device_num or "[0,8)")
    visible = _parsed("--visible_devices", visible_devices)
    if device_num is None:
        return visible
    counted = _parsed("--device_num", device_num)
    beyond: List[int] = [index for index in counted if index >= len(visible)]
    if beyond:
        raise UsageError(
            f"--device_num {device_num} counts to {beyond[-1]}, but --visible_devices lists "
            f"{len(visible)}",
            hint=f"write --device_num '[0,{len(visible)})'",
        )
    return tuple(visible[index] for index in counted)


def _parsed(option: str, text: str) -> Tuple[int, ...]:
    from orchestrator.inventory import DevicesError, parse_devices

    try:
        return parse_devices(text)
    except DevicesError as error:
        raise UsageError(f"{option}: {error}", hint=error.hint) from None


def _own_address() -> str:
    """The address from which this host reaches others: that of its default route. Asking the
    resolver for the own name, as hccl_tools.py does, often yields 127.0.1.1."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
        except OSError:
            raise UsageError(
                "this host has no route from which its address could be told",
                hint="give it with --server_ip",
            ) from None
        return str(probe.getsockname()[0])
