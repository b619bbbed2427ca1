"""Streams over the system's ssh, against real servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator

import psutil
import pytest

from orchestrator.errors import HostUnreachable
from orchestrator.inventory import Host
from orchestrator.transport.openssh import OpenSshStream, find_ssh, ssh_streams
from tests.cluster.sshd import Loopback, wait_until, with_ssh, write_key

pytestmark = pytest.mark.skipif(find_ssh() is None, reason="ssh is not installed")


@contextlib.contextmanager
def streaming(host: Host, *argv: str) -> Iterator[OpenSshStream]:
    program = find_ssh()
    assert program is not None
    with ssh_streams(program, [host]) as streams:
        stream = streams[host.name](argv)
        assert isinstance(stream, OpenSshStream)
        yield stream


def test_bytes_arrive_as_they_are(loopback: Callable[..., Loopback], tmp_path: Path) -> None:
    (host,) = loopback(1).hosts
    content = os.urandom(3 << 20)
    (tmp_path / "a file's name").write_bytes(content)
    with streaming(host, "cat", f"{tmp_path}/a file's name") as stream:
        assert b"".join(stream) == content
        assert stream.exit_status == 0
    with streaming(host, "sh", "-c", "echo why >&2; exit 4") as stream:
        assert list(stream) == []
        assert (stream.exit_status, stream.stderr) == (4, b"why\n")
    with streaming(host, "no-such-program") as stream:
        assert list(stream) == []
        assert stream.exit_status == 127


def test_only_keys_that_we_know_are_accepted(
    loopback: Callable[..., Loopback], tmp_path: Path
) -> None:
    cluster = loopback(2)
    one, other = cluster.hosts
    lines = dict(
        line.split(" ", 1) for line in cluster.known_hosts.read_text().splitlines(keepends=True)
    )
    names = [f"[{host.address}]:{host.ssh.port}" for host in (one, other)]
    cases = {
        "empty": "",
        "changed": f"{names[0]} {lines[names[1]]}",
        "revoked": f"{names[0]} {lines[names[0]]}@revoked * {lines[names[0]]}",
    }
    for name, text in cases.items():
        known = tmp_path / f"known {name} 100%h"  # blanks and ssh's own tokens mean nothing
        known.write_text(text)
        with streaming(with_ssh(one, known_hosts=str(known)), "true") as stream:
            with pytest.raises(HostUnreachable, match=r"(?i)host key"):
                list(stream)
            assert stream.exit_status is None


def test_the_users_own_configuration_takes_no_part(
    loopback: Callable[..., Loopback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host,) = loopback(1).hosts
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host *\n ProxyCommand false\n Port 1\n")
    monkeypatch.setenv("HOME", str(home))
    with streaming(host, "echo", "there") as stream:
        assert b"".join(stream) == b"there\n"


def test_a_key_that_the_server_refuses(loopback: Callable[..., Loopback], tmp_path: Path) -> None:
    (host,) = loopback(1).hosts
    write_key(tmp_path / "other")
    refused = with_ssh(host, key=str(tmp_path / "other"))
    with (
        streaming(refused, "true") as stream,
        pytest.raises(HostUnreachable, match="Permission denied"),
    ):
        list(stream)


def test_a_lost_connection_is_an_error(loopback: Callable[..., Loopback]) -> None:
    cluster = loopback(1)
    (host,) = cluster.hosts
    with streaming(host, "sh", "-c", "echo begun; sleep 60") as stream:
        chunks = iter(stream)
        assert next(chunks) == b"begun\n"
        cluster.cut(host)
        with pytest.raises(HostUnreachable, match="ssh ended with status 255"):
            list(chunks)


def test_the_end_of_the_block_ends_ssh(loopback: Callable[..., Loopback]) -> None:
    (host,) = loopback(1).hosts
    with streaming(host, "sleep", "60") as stream:
        (child,) = [p for p in psutil.Process().children() if p.name() == "ssh"]
    wait_until(lambda: not child.is_running(), "the end of ssh")
    assert stream.exit_status is None


def test_ssh_ends_with_a_command_that_was_killed(
    loopback: Callable[..., Loopback], tmp_path: Path
) -> None:
    """It notices by its next write that nobody reads any more."""
    (host,) = loopback(1).hosts
    program = (
        "import sys\n"
        "from orchestrator.transport.openssh import find_ssh, ssh_streams\n"
        "from orchestrator.inventory import Host, SshOptions\n"
        f"host = {host!r}\n"
        "with ssh_streams(find_ssh(), [host]) as streams:\n"
        "    for chunk in streams[host.name](['cat', '/dev/zero']):\n"
        "        print('reading', flush=True)\n"
        "        sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"reading\n"
    children = psutil.Process(process.pid).children()
    assert [child.name() for child in children] == ["ssh"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not children[0].is_running(), "the end of ssh")
    process.stdin.close()
    process.stdout.close()


def test_there_may_be_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("ssh") is None
    assert find_ssh() is None
