"""``ssh: {config: …, jump: …}`` of an inventory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import InventoryError
from orchestrator.inventory import Host, Inventory, parse_inventory
from orchestrator.inventory.ssh_route import RouteError, Said, SshConfig, route


def config(tmp_path: Path, text: str) -> SshConfig:
    (tmp_path / ".ssh").mkdir(exist_ok=True)
    (tmp_path / ".ssh/config").write_text(text)
    return SshConfig(tmp_path / ".ssh/config", tmp_path)


def inventory(tmp_path: Path, ssh: str, hosts: str = "node1") -> Inventory:
    text = (
        f"ssh: {ssh}\ndefaults: {{devices: [0], device_target: CPU, workdir: /w}}\nhosts: {hosts}\n"
    )
    return parse_inventory(text, "inv.yaml", folder=tmp_path, default_python="py", home=tmp_path)


def only(found: Inventory) -> Host:
    [host] = found.hosts
    return host


def test_the_inventory_goes_before_the_configuration(tmp_path: Path) -> None:
    config(tmp_path, "Host node*\n HostName 10.0.0.7\n User them\n Port 2222\n IdentityFile /k\n")
    host = only(inventory(tmp_path, "{config: true, port: 22, user: us}"))
    assert (host.address, host.server_id) == ("10.0.0.7", "10.0.0.7")
    assert (host.ssh.user, host.ssh.port, host.ssh.key) == ("us", 22, "/k")


def test_without_config_nothing_is_read(tmp_path: Path) -> None:
    config(tmp_path, "Host node*\n HostName 10.0.0.7\n")
    assert only(inventory(tmp_path, "{port: 22}")).address == "node1"
    assert only(inventory(tmp_path, "{config: false}")).address == "node1"


def test_a_block_that_hangs_on_a_command(tmp_path: Path) -> None:
    """In a process of its own: invoke, with which paramiko runs it, leaves pipes open."""
    config(tmp_path, 'Match exec "test %h = node1"\n Port 77\nMatch exec "false"\n User no\n')
    program = (
        "import sys; from pathlib import Path; from orchestrator.inventory.ssh_route import *;"
        "home = Path(sys.argv[1]); found = SshConfig(home / '.ssh/config', home);"
        "_, ssh = route('node1', Said(user='us'), found); print(ssh.port, ssh.user)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "77 us\n", done.stderr


def test_jump_hosts_in_their_order(tmp_path: Path) -> None:
    ssh = only(inventory(tmp_path, '{jump: "me@a:2022,b", user: us, key: k}')).ssh
    assert [(g.address, g.user, g.port, g.key) for g in ssh.gateways] == [
        ("a", "me", 2022, f"{tmp_path}/k"),
        ("b", "us", 22, f"{tmp_path}/k"),
    ]


def test_the_way_of_a_jump_host_itself(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        "Host inner\n HostName 10.0.0.2\n ProxyJump outer\n User i\n"
        "Host outer\n HostName 1.2.3.4\n Port 2200\n"
        "Host node1\n ProxyJump inner\n",
    )
    _, ssh = route("node1", Said(user="us"), found)
    assert [(g.address, g.user, g.port) for g in ssh.gateways] == [
        ("1.2.3.4", "us", 2200),
        ("10.0.0.2", "i", 22),
    ]


def test_none_takes_the_configured_jump_away(tmp_path: Path) -> None:
    found = config(tmp_path, "Host node1\n ProxyJump gate\nHost node2\n ProxyCommand nc %h %p\n")
    assert route("node1", Said(), found)[1].gateways != ()
    assert route("node1", Said(jump="none"), found)[1].gateways == ()
    assert route("node2", Said(), found)[1].proxy_command == "nc node2 22"
    assert route("node2", Said(jump="none"), found)[1].proxy_command is None


def test_include_keeps_the_block_around_it(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/a.conf").write_text("Host other\n Port 5\n")
    found = config(
        tmp_path, "Include a.conf\nUser everybody\nHost node1\n Include a.conf\n Port 7\n"
    )
    assert route("node1", Said(), found)[1].port == 7
    assert route("node1", Said(), found)[1].user == "everybody"
    assert route("other", Said(), found)[1].port == 5


def test_loops_and_nonsense(tmp_path: Path) -> None:
    with pytest.raises(RouteError, match="leads through itself"):
        route("n", Said(), config(tmp_path, "Host *\n ProxyJump a\n"))
    (tmp_path / ".ssh/config").write_text("Include config\n")
    with pytest.raises(RouteError, match="includes itself"):
        SshConfig(tmp_path / ".ssh/config", tmp_path)
    with pytest.raises(RouteError, match="no jump host"):
        route("n", Said(jump="a b"), None)
    with pytest.raises(RouteError, match="no jump host"):
        route("n", Said(jump="-oProxyCommand=x"), None)


def test_a_problem_is_told_once_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"inv\.yaml:1:\d+.*cannot read") as caught:
        inventory(tmp_path, "{config: missing}", "node[1-9]")
    assert str(caught.value).count("cannot read") == 1
