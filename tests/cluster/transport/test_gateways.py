"""Hosts behind a jump host, and hosts that OpenSSH's configuration describes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, List

import pytest

from orchestrator.errors import HostKeyMismatch, HostUnreachable, KeyRefused, OrchError
from orchestrator.inventory import Gateway, Host, load_inventory
from orchestrator.transport.pool import Outcome, connect, fan_out
from tests.cluster.sshd import Loopback, wait_until, with_ssh, write_key

Start = Callable[..., Loopback]


def gateway_of(host: Host) -> Gateway:
    ssh = host.ssh
    return Gateway(host.address, ssh.user, ssh.port, ssh.key, ssh.known_hosts)


def logins(cluster: Loopback, host: Host) -> int:
    return (cluster.server(host).folder / "sshd.log").read_text().count("Accepted publickey")


def echo_on_all(hosts: List[Host]) -> List[Outcome[bytes]]:
    transports = [connect(host) for host in hosts]
    try:
        return fan_out(transports, lambda t: t.run(["echo", t.name]).stdout, limit=len(hosts))
    finally:
        for transport in transports:
            transport.close()


def error_of(host: Host) -> OrchError:
    [outcome] = echo_on_all([host])
    assert outcome.error is not None
    return outcome.error


def test_many_hosts_share_one_connection_to_the_jump_host(loopback: Start) -> None:
    cluster = loopback(12, sshd_config="MaxStartups 2:100:2")
    jump, *behind = cluster.hosts
    through = [with_ssh(host, gateways=(gateway_of(jump),)) for host in behind]
    outcomes = echo_on_all(through)
    assert [o.value for o in outcomes] == [f"{host.name}\n".encode() for host in behind]
    assert logins(cluster, jump) == 1
    wait_until(
        lambda: not cluster.server(jump).connections(),
        "the connection to the jump host ends with the last host behind it",
    )


def test_two_jump_hosts_in_a_row(loopback: Start) -> None:
    cluster = loopback(3)
    first, second, target = cluster.hosts
    way = (gateway_of(first), gateway_of(second))
    [outcome] = echo_on_all([with_ssh(target, gateways=way)])
    assert outcome.value == f"{target.name}\n".encode()
    assert [logins(cluster, host) for host in (first, second, target)] == [1, 1, 1]


def test_a_jump_host_that_is_away_is_named(loopback: Start) -> None:
    cluster = loopback(2)
    jump, target = cluster.hosts
    cluster.stop(jump)
    error = error_of(with_ssh(target, gateways=(gateway_of(jump),)))
    assert isinstance(error, HostUnreachable)
    assert error.host == target.name
    assert f"the jump host: {jump.address} port" in str(error)


def test_a_target_that_is_away_is_told_from_its_jump_host(loopback: Start) -> None:
    cluster = loopback(2)
    jump, target = cluster.hosts
    cluster.stop(target)
    error = error_of(with_ssh(target, gateways=(gateway_of(jump),)))
    assert isinstance(error, HostUnreachable)
    assert f"the jump host {jump.address} does not connect to {target.address}" in str(error)


def test_forwarding_that_is_forbidden_has_a_hint(loopback: Start) -> None:
    cluster = loopback(2, sshd_config="AllowTcpForwarding no")
    jump, target = cluster.hosts
    error = error_of(with_ssh(target, gateways=(gateway_of(jump),)))
    assert "AllowTcpForwarding" in error.hint


def test_the_key_of_the_jump_host_is_checked(loopback: Start, tmp_path: Path) -> None:
    cluster = loopback(2)
    jump, target = cluster.hosts
    empty = tmp_path / "nobody"
    empty.write_text("")
    way = Gateway(jump.address, jump.ssh.user, jump.ssh.port, jump.ssh.key, str(empty))
    error = error_of(with_ssh(target, gateways=(way,)))
    assert isinstance(error, HostKeyMismatch)
    assert "the jump host" in str(error)
    assert logins(cluster, jump) == 0


def test_a_jump_host_that_refuses_the_key(loopback: Start, tmp_path: Path) -> None:
    cluster = loopback(2)
    jump, target = cluster.hosts
    write_key(tmp_path / "other")
    known = str(cluster.known_hosts)
    way = Gateway(jump.address, jump.ssh.user, jump.ssh.port, str(tmp_path / "other"), known)
    assert isinstance(error_of(with_ssh(target, gateways=(way,))), KeyRefused)


def test_a_cut_jump_host_is_connected_to_again(loopback: Start) -> None:
    cluster = loopback(2)
    jump, target = cluster.hosts
    transport = connect(with_ssh(target, gateways=(gateway_of(jump),)))
    try:
        assert transport.run(["true"]).ok
        cluster.cut(jump)
        wait_until(lambda: _runs(transport.run), "the host is reached again")
        assert logins(cluster, jump) == 2
    finally:
        transport.close()


def _runs(run: Callable[..., object]) -> bool:
    try:
        return bool(run(["true"]))
    except HostUnreachable:
        return False


@pytest.mark.parametrize("way", ["ProxyJump jump", "ProxyCommand {python} {relay} {jump} {port}"])
def test_openssh_configuration(loopback: Start, tmp_path: Path, way: str) -> None:
    """Aliases, user, port, key, known hosts and the way come from ssh_config alone."""
    cluster = loopback(2)
    jump, target = cluster.hosts
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY)
    way = way.format(python=sys.executable, relay=relay, jump=target.address, port=target.ssh.port)
    (tmp_path / "more").write_text(
        f"Host *\n  User {jump.ssh.user}\n  Port {jump.ssh.port}\n  IdentityFile {cluster.key}\n"
        f"  UserKnownHostsFile {cluster.known_hosts}\n  ConnectTimeout 20\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host jump\n  HostName {jump.address}\n"
        f"Host node1\n  HostName {target.address}\n  {way}\n"
        f"Include {tmp_path}/more\n"
    )
    (tmp_path / "inv.yaml").write_text(
        "ssh: {config: ssh_config}\n"
        "defaults: {devices: [0], device_target: CPU, workdir: /w}\n"
        "hosts: node1\n"
    )
    inventory = load_inventory(tmp_path / "inv.yaml", default_python="python3", home=tmp_path)
    [host] = inventory.hosts
    assert (host.address, host.server_id) == (target.address, target.address)
    [outcome] = echo_on_all([host])
    assert outcome.value == b"node1\n"
    assert logins(cluster, jump) == (1 if way == "ProxyJump jump" else 0)


RELAY = """\
import socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while True:
        data = sock.recv(65536)
        if not data:
            break
        sys.stdout.buffer.write(data); sys.stdout.buffer.flush()
threading.Thread(target=back, daemon=True).start()
while True:
    data = sys.stdin.buffer.raw.read(65536)
    if not data:
        break
    sock.sendall(data)
"""
