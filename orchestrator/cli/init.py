"""``glm2-orch init``: a commented inventory from what people have already."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

import click

from orchestrator.cli.output import output_option, print_json, say
from orchestrator.errors import InventoryError, Location, UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import ImportedHost

_CANN = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


@click.command()
@click.option(
    "--from",
    "source",
    metavar="FILE",
    help="A list of hosts, a bash file with IP_LIST=(…), or an inventory of Ansible (INI, YAML); "
    "- reads standard input. Nothing in it is run.",
)
@click.option("--hosts", metavar="PATTERN", help='The hosts themselves, e.g. "192.168.0.[0-11]".')
@click.option("--out", "out_file", default="inventory.yaml", show_default=True, metavar="FILE")
@click.option("--cluster", metavar="NAME", help="Default: the name of the file.")
@click.option("--user", metavar="NAME", help="Who logs in; default: as ssh would.")
@click.option("--key", metavar="FILE", default="~/.ssh/id_ed25519", show_default=True)
@click.option(
    "--target",
    "device_target",
    type=click.Choice(("Ascend", "CPU")),
    default="Ascend",
    show_default=True,
)
@click.option("--devices", metavar="RANGE", default="[0,8)", show_default=True)
@click.option("--workdir", metavar="DIR", default="/data/glm2", show_default=True)
@click.option("--python", metavar="PATH", default="/usr/local/bin/python3", show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@output_option("table", "json")
def init(
    source: Optional[str],
    hosts: Optional[str],
    out_file: str,
    cluster: Optional[str],
    user: Optional[str],
    key: str,
    device_target: str,
    devices: str,
    workdir: str,
    python: str,
    force: bool,
    output: str,
) -> None:
    """Write a commented inventory from a list of hosts.

    \b
      glm2-orch init --hosts "192.168.0.[0-11]" --user ma-user
      glm2-orch init --from run_distribute.sh       the guide's IP_LIST=("192.168.0.0" …)
      glm2-orch init --from /etc/ansible/hosts

    Of Ansible's variables those are taken that say how a host is reached. The file is read back
    before it is written.
    """
    from orchestrator.inventory import parse_inventory
    from orchestrator.planning.render import render

    found, origin = _found(source, hosts)
    target = Path(out_file)
    if target.exists() and not force:
        raise UsageError(f"{out_file} exists already", hint="give another --out, or --force")
    ascend = device_target == "Ascend"
    text = render(
        "inventory.yaml.j2",
        cluster=cluster or target.stem,
        origin=origin,
        file=out_file,
        ssh=_ssh(found, user, key),
        device_target=device_target,
        devices=devices,
        workdir=workdir,
        python=python,
        setup=f"  {'' if ascend else '# '}setup: {_CANN}",
        groups=_groups(found),
        hosts=_overrides(found),
        config="run_glm2_6b_finetune" if ascend else "tiny_cpu",
    )
    made = parse_inventory(
        text,
        out_file,
        folder=target.absolute().parent,
        default_python=sys.executable,
        home=Path.home(),
    )
    _write(target, text, force)
    say(f"wrote {out_file}: {len(made.hosts)} hosts, {len(made.spares)} spares; look it through")
    say(f"  next: glm2-orch preflight --inventory {out_file}")
    if output == "json":
        names = [host.name for host in made.hosts]
        print_json({"file": out_file, "cluster": made.cluster, "hosts": names})
    else:
        click.echo(out_file)


def _found(source: Optional[str], hosts: Optional[str]) -> Tuple[Sequence[ImportedHost], str]:
    from orchestrator.inventory import import_hosts
    from orchestrator.logs.text import printable

    if (source is None) == (hosts is None):
        raise UsageError(
            "say where the hosts come from",
            hint='give either --hosts "192.168.0.[0-11]" or --from FILE',
        )
    if hosts is not None:
        return import_hosts(hosts, "--hosts"), ""
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(str(source)).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}", hint="give the path of a file to --from"
        ) from None
    except UnicodeDecodeError as error:
        raise InventoryError(
            "it is not UTF-8 text", hint="save it as UTF-8", location=Location(str(source))
        ) from error
    name = "standard input" if source == "-" else Path(str(source)).name
    return import_hosts(text, str(source)), f" from {printable(name)}"


def _ssh(found: Sequence[ImportedHost], user: Optional[str], key: str) -> str:
    shared = _shared(found)
    who = user or shared.get("user")
    lines = [
        f"user: {json.dumps(who)}" if who else "# user: ma-user # as ssh would, where left out"
    ]
    lines.append(f"port: {shared['port']}" if "port" in shared else "# port: 22")
    lines.append(f"key: {json.dumps(shared.get('key', key))}")
    note = "# a host whose key is not in it is refused"
    lines.append(f"known_hosts: ~/.ssh/known_hosts {note}")
    return "\n".join(f"  {line}" for line in lines)


def _shared(found: Sequence[ImportedHost]) -> Dict[str, str]:
    """Settings of ssh that all hosts have alike."""
    first = found[0].settings
    return {
        name: value
        for name, value in first.items()
        if name != "address" and all(host.settings.get(name) == value for host in found)
    }


def _groups(found: Sequence[ImportedHost]) -> str:
    from orchestrator.inventory import WORKERS, fold

    members: Dict[str, List[str]] = {}
    for host in found:
        for group in host.groups or (WORKERS,):
            members.setdefault(group, []).append(host.name)
    lines: List[str] = []
    for group, names in members.items():
        patterns = fold(names)
        lines.append(f"  {json.dumps(group)}:")
        if len(patterns) == 1:
            lines.append(f"    hosts: {json.dumps(patterns[0])}")
        else:
            lines += ["    hosts:", *(f"      - {json.dumps(pattern)}" for pattern in patterns)]
    return "\n".join(lines)


def _overrides(found: Sequence[ImportedHost]) -> str:
    shared = _shared(found)
    rows: List[str] = []
    for host in found:
        own = {key: value for key, value in host.settings.items() if shared.get(key) != value}
        entries = [f"address: {json.dumps(own.pop('address'))}"] if "address" in own else []
        ssh = [f"{key}: {_setting(key, value)}" for key, value in own.items()]
        if ssh:
            entries.append("ssh: {" + ", ".join(ssh) + "}")
        if entries:
            rows.append(f"  {json.dumps(host.name)}: {{{', '.join(entries)}}}")
    return "\n".join(["hosts:", *rows]) if rows else "# hosts:\n#   node7: {ssh: {port: 2222}}"


def _setting(key: str, value: str) -> str:
    return value if key == "port" and value.isascii() and value.isdigit() else json.dumps(value)


def _write(target: Path, text: str, force: bool) -> None:
    mode = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with os.fdopen(os.open(target, mode, 0o644), "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror}", hint="give a path that you can write"
        ) from error
