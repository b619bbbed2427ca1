"""What an SSH connection goes through: kept, cut, dropped, silent, gone, and back."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable, List

import psutil
import pytest

from orchestrator.errors import HostTimeout, HostUnreachable, KeyRefused, OrchError
from orchestrator.inventory import Host, SshAddress, load_inventory
from orchestrator.transport.base import RemoteFile, Transport
from orchestrator.transport.handshake import drop_connection, open_connection
from orchestrator.transport.pool import fan_out
from tests.cluster.sshd import Loopback, wait_until, with_ssh, write_key
from tests.cluster.transport.conftest import Dial

Start = Callable[..., Loopback]

# From inside a command: the sshd of this session is the parent of the shell around it.
KILL_SESSION = "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)"


def logins(cluster: Loopback, host: Host) -> int:
    return (cluster.server(host).folder / "sshd.log").read_text().count("Accepted publickey")


@pytest.fixture
def cluster(loopback: Start) -> Loopback:
    return loopback(1)


@pytest.fixture
def host(cluster: Loopback) -> Host:
    return cluster.hosts[0]


@pytest.fixture
def transport(dial: Dial, host: Host) -> Transport:
    return dial(host)


def test_nothing_is_dialled_before_the_first_use(
    cluster: Loopback, host: Host, transport: Transport
) -> None:
    assert logins(cluster, host) == 0
    transport.run(["true"])
    assert logins(cluster, host) == 1


def test_one_connection_serves_everything(
    cluster: Loopback, host: Host, transport: Transport
) -> None:
    for _ in range(3):
        transport.run(["true"])
    transport.put([RemoteFile("x", b"x")], host.workdir)
    assert list(transport.stream(["echo", "x"])) == [b"x\n"]
    assert logins(cluster, host) == 1


def test_threads_that_come_first_together_share_a_connection(
    cluster: Loopback, host: Host, transport: Transport
) -> None:
    threads = [threading.Thread(target=transport.run, args=(["true"],)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logins(cluster, host) == 1


def test_commands_that_end_at_once_do_not_end_the_connection(
    cluster: Loopback, host: Host, transport: Transport
) -> None:
    """sshd ends one on which the end of a command's input comes after the command's own end."""

    def many() -> None:
        for _ in range(100):
            transport.run(["true"])

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logins(cluster, host) == 1


def test_a_connection_that_died_between_commands_is_replaced(
    cluster: Loopback, host: Host, transport: Transport
) -> None:
    transport.run(["true"])
    cluster.cut(host)
    assert transport.run(["echo", "back"]).stdout == b"back\n"
    cluster.cut(host)
    transport.put([RemoteFile("x", b"x")], host.workdir)
    assert logins(cluster, host) == 3


def test_a_command_cut_in_the_middle_is_unknown_and_not_repeated(
    host: Host, transport: Transport, cluster: Loopback, tmp_path_factory: pytest.TempPathFactory
) -> None:
    started = tmp_path_factory.mktemp("run") / "started"
    script = f"echo x >> {started}; {KILL_SESSION}"
    with pytest.raises(
        HostUnreachable, match="connection lost while running `sh`: what happened there is unknown"
    ) as caught:
        transport.run(["sh", "-c", script])
    assert caught.value.host == host.name
    assert started.read_text() == "x\n"
    assert transport.run(["true"]).ok


def test_a_stream_cut_in_the_middle(cluster: Loopback, host: Host, transport: Transport) -> None:
    stream = transport.stream(["sh", "-c", "echo one; exec sleep 60"])
    chunks = iter(stream)
    assert next(chunks) == b"one\n"
    cluster.cut(host)
    with pytest.raises(HostUnreachable, match="connection lost while running") as caught:
        next(chunks)
    assert caught.value.host == host.name
    assert stream.exit_status is None


def test_a_host_that_goes_and_comes_back(
    cluster: Loopback, host: Host, transport: Transport
) -> None:
    transport.run(["true"])
    cluster.stop(host)
    with pytest.raises(HostUnreachable, match="refuses the connection") as caught:
        transport.run(["true"])
    assert "sshd" in caught.value.hint
    cluster.start(host)
    assert transport.run(["echo", "back"]).stdout == b"back\n"


def test_an_sshd_that_stops_answering(cluster: Loopback, host: Host, transport: Transport) -> None:
    transport.run(["true"])
    process = cluster.server(host).process
    assert process is not None
    sessions = psutil.Process(process.pid).children(recursive=True)
    for session in sessions:
        session.suspend()
    try:
        with pytest.raises(HostTimeout, match=r"no answer on the open connection within 0\.5 s"):
            transport.run(["true"], timeout=0.5)
    finally:
        for session in sessions:
            session.resume()
    assert transport.run(["true"]).ok


def test_more_streams_than_the_server_allows(loopback: Start, dial: Dial) -> None:
    cluster = loopback(1, sshd_config="MaxSessions 2")
    transport = dial(cluster.hosts[0])
    streams = [transport.stream(["cat"]) for _ in range(2)]
    with pytest.raises(HostUnreachable, match="refused another session") as caught:
        transport.run(["true"])
    assert "MaxSessions" in caught.value.hint
    streams[0].close()

    def is_free_again() -> bool:
        with suppress(HostUnreachable):
            return transport.run(["true"]).ok
        return False

    wait_until(is_free_again, "the session of the stream to end with it")


def test_the_tuning_is_in_effect(host: Host) -> None:
    connection = open_connection(host)
    try:
        sock = connection.sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert connection.get_security_options().kex[0].startswith("curve25519-sha256")
        assert connection.remote_cipher == connection.get_security_options().ciphers[0]
        assert connection.packetizer.REKEY_BYTES == 1 << 36
    finally:
        drop_connection(connection)


def test_a_name_that_cannot_be(dial: Dial, host: Host) -> None:
    with pytest.raises(HostUnreachable, match=r"the name 'node\.\.7' cannot be resolved"):
        dial(replace(host, address=SshAddress("node..7"))).run(["true"])


def test_a_network_that_cannot_be_reached(dial: Dial, host: Host) -> None:
    with pytest.raises(HostUnreachable, match="cannot be reached"):
        dial(replace(host, address=SshAddress("::ffff:255.255.255.255"))).run(["true"])


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-silent\r\n"])
def test_a_server_that_accepts_and_falls_silent(
    dial: Dial, host: Host, ending: ExitStack, greeting: bytes
) -> None:
    listener = ending.enter_context(closing(socket.create_server(("127.0.1.200", 0))))

    def greet() -> None:
        with suppress(OSError):  # we have waited long enough before it came to that
            peer, _ = listener.accept()
            ending.callback(peer.close)
            peer.sendall(greeting)

    threading.Thread(target=greet, daemon=True).start()
    silent = _at(host, listener, connect_timeout=0.5)
    with pytest.raises(HostTimeout, match=r"accepts but .* SSH.* \(waited 0\.5 s\)") as caught:
        dial(silent).run(["true"])
    assert caught.value.host == host.name


def test_a_network_that_drops_everything(dial: Dial, host: Host, ending: ExitStack) -> None:
    """A listener whose queue is full takes no part in a TCP handshake any more."""
    listener = ending.enter_context(closing(socket.socket()))
    listener.bind(("127.0.1.200", 0))
    listener.listen(0)
    for _ in range(4):
        filler = ending.enter_context(closing(socket.socket()))
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    with pytest.raises(HostTimeout, match=r"does not answer \(waited 0\.5 s\)"):
        dial(_at(host, listener, connect_timeout=0.5)).run(["true"])


def test_a_server_that_is_not_ssh(dial: Dial, host: Host, ending: ExitStack) -> None:
    proxy = ending.enter_context(Dropper(host, drops=1000, says=b"HTTP/1.1 400 Bad Request\r\n"))
    with pytest.raises(HostUnreachable, match="closed the connection before") as caught:
        dial(_at(host, proxy.listener)).run(["true"])
    assert "is this an SSH server?" in caught.value.hint


def test_connections_dropped_by_a_busy_server_are_tried_again(
    dial: Dial, cluster: Loopback, host: Host, ending: ExitStack
) -> None:
    """As sshd does beyond MaxStartups."""
    proxy = ending.enter_context(Dropper(host, drops=2))
    through = _at(host, proxy.listener)
    cluster.known_hosts.write_text(
        cluster.known_hosts.read_text().replace(f"]:{host.ssh.port}", f"]:{through.ssh.port}")
    )
    assert dial(replace(through, address=host.address)).run(["echo", "in"]).stdout == b"in\n"
    assert proxy.dropped == 2


def test_twelve_hosts_of_which_one_is_dead_and_one_refuses_the_key(
    loopback: Start, dial: Dial
) -> None:
    cluster = loopback(12)
    hosts = list(cluster.hosts)
    cluster.stop(hosts[3])
    write_key(cluster.folder / "other_key")
    hosts[7] = with_ssh(hosts[7], key=str(cluster.folder / "other_key"))
    seen: List[str] = []
    outcomes = fan_out(
        [dial(host) for host in hosts],
        lambda transport: transport.run(["echo", transport.name]).stdout.decode().strip(),
        on_done=lambda outcome: seen.append(outcome.host),
    )
    assert [outcome.host for outcome in outcomes] == [host.name for host in hosts]
    assert sorted(seen) == sorted(host.name for host in hosts)
    errors = {outcome.host: outcome.error for outcome in outcomes if not outcome.ok}
    assert {name: type(error) for name, error in errors.items()} == {
        hosts[3].name: HostUnreachable,
        hosts[7].name: KeyRefused,
    }
    assert all(isinstance(error, OrchError) and error.host == n for n, error in errors.items())
    assert all(outcome.value == outcome.host for outcome in outcomes if outcome.ok)


def test_what_the_harness_says_is_what_an_inventory_says(cluster: Loopback) -> None:
    path = cluster.inventory()
    inventory = load_inventory(path, default_python="python3", home=Path("/nonexistent"))
    assert [replace(host, groups=()) for host in inventory.hosts] == list(cluster.hosts)


class Dropper:
    """A proxy before a host's sshd that closes the first ``drops`` connections at once."""

    def __init__(self, host: Host, *, drops: int, says: bytes = b"") -> None:
        self.listener = socket.create_server((host.address, 0))
        self.dropped = 0
        self._target = (host.address, host.ssh.port)
        self._drops = drops
        self._says = says
        self._open: List[socket.socket] = [self.listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Dropper:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            if self.dropped < self._drops:
                self.dropped += 1
                peer.sendall(self._says)
                peer.close()
                continue
            server = socket.create_connection(self._target)
            self._open += [peer, server]
            for source, target in ((peer, server), (server, peer)):
                threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while True:
            data = source.recv(1 << 16)
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _at(host: Host, listener: socket.socket, **options: object) -> Host:
    address, port = listener.getsockname()[:2]
    return with_ssh(replace(host, address=SshAddress(address)), port=port, **options)
