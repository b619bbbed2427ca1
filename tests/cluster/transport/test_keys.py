"""Who is let in, and who is believed: SSH keys of ours and of the hosts."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import pytest

from orchestrator.errors import HostKeyMismatch, KeyRefused
from orchestrator.inventory import Host
from tests.cluster.sshd import Loopback, wait_until, with_ssh, write_key
from tests.cluster.transport.conftest import Dial

Start = Callable[..., Loopback]


def keygen(path: Path, *options: str) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", "-q", "-f", str(path), *options], check=True)
    return path


def allow(cluster: Loopback, public: Path) -> None:
    with open(cluster.folder / "authorized_keys", "a") as keys:
        keys.write(public.read_text())


@pytest.fixture
def cluster(loopback: Start) -> Loopback:
    return loopback(1)


@pytest.fixture
def host(cluster: Loopback) -> Host:
    return cluster.hosts[0]


@pytest.mark.parametrize("kind", [["rsa", "-b", "2048"], ["ecdsa"], ["ed25519"]])
def test_kinds_of_keys(cluster: Loopback, host: Host, dial: Dial, kind: list[str]) -> None:
    key = keygen(cluster.folder / "key", "-N", "", "-t", *kind)
    allow(cluster, Path(f"{key}.pub"))
    assert dial(with_ssh(host, key=str(key))).run(["true"]).ok


def test_a_key_that_the_server_does_not_know(cluster: Loopback, host: Host, dial: Dial) -> None:
    write_key(cluster.folder / "other")
    with pytest.raises(KeyRefused, match=r"does not let user '.*' in with .*/other") as caught:
        dial(with_ssh(host, key=f"{cluster.folder}/other")).run(["true"])
    assert f"ssh-copy-id -p {cluster.port} {host.ssh.user}@127.0.1.1" in caught.value.hint
    assert caught.value.host == host.name


def test_a_key_file_that_is_missing(host: Host, dial: Dial, tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match=r"the key file .*/none does not exist") as caught:
        dial(with_ssh(host, key=f"{tmp_path}/none")).run(["true"])
    assert "ssh.key" in caught.value.hint
    assert caught.value.host == host.name


def test_a_key_file_that_cannot_be_read(host: Host, dial: Dial, tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match=r"cannot be read: Is a directory"):
        dial(with_ssh(host, key=str(tmp_path))).run(["true"])


@pytest.mark.parametrize("options", [[], ["-m", "PEM"]])
def test_a_key_file_that_is_encrypted(
    cluster: Loopback, host: Host, dial: Dial, options: list[str]
) -> None:
    kind = ["-t", "rsa"] if options else ["-t", "ed25519"]
    key = keygen(cluster.folder / "key", "-N", "a passphrase", *kind, *options)
    with pytest.raises(KeyRefused, match=r"/key is encrypted") as caught:
        dial(with_ssh(host, key=str(key))).run(["true"])
    assert f"ssh-add {key}" in caught.value.hint


def test_the_public_key_in_place_of_the_private(cluster: Loopback, host: Host, dial: Dial) -> None:
    with pytest.raises(KeyRefused, match=r"id_ed25519\.pub is not a private key") as caught:
        dial(with_ssh(host, key=f"{cluster.key}.pub")).run(["true"])
    assert "not the .pub file" in caught.value.hint


def test_a_key_that_others_can_read_is_used_but_named_once(
    cluster: Loopback, host: Host, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.key.chmod(0o644)
    with caplog.at_level(logging.WARNING, logger="orchestrator"):
        for _ in range(2):
            assert dial(host).run(["true"]).ok
    assert caplog.messages == [f"the private key {cluster.key} can be read by others: chmod 600 it"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of our own, and no agent."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


def test_without_a_key_in_the_inventory_the_usual_files_serve(
    cluster: Loopback, host: Host, dial: Dial, home: Path
) -> None:
    usual = with_ssh(host, key=None, known_hosts=None)
    (home / ".ssh/known_hosts").write_text(cluster.known_hosts.read_text())
    with pytest.raises(KeyRefused, match="there is no SSH key") as caught:
        dial(usual).run(["true"])
    assert "ssh-add" in caught.value.hint
    shutil.copy(cluster.key, home / ".ssh/id_ed25519")
    assert dial(usual).run(["true"]).ok


def test_without_a_key_in_the_inventory_the_agent_serves(
    cluster: Loopback,
    host: Host,
    dial: Dial,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: ExitStack,
) -> None:
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    socket_path = home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    ending.callback(agent.wait)
    ending.callback(agent.kill)
    wait_until(socket_path.exists, "the agent")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
    subprocess.run(["ssh-add", "-q", str(cluster.key)], check=True)
    assert dial(with_ssh(host, key=None)).run(["true"]).ok


def test_a_host_key_that_is_not_known(
    cluster: Loopback, host: Host, dial: Dial, tmp_path: Path
) -> None:
    """The hint, followed to the letter, helps."""
    if shutil.which("ssh-keyscan") is None:
        pytest.skip("ssh-keyscan is not installed")
    stranger = with_ssh(host, known_hosts=f"{tmp_path}/known_hosts")
    with pytest.raises(HostKeyMismatch, match=r"\(ssh-ed25519 SHA256:.*\) is not known") as caught:
        dial(stranger).run(["true"])
    assert caught.value.host == host.name
    command = next(part for part in caught.value.hint.split("`") if part.startswith("ssh-keyscan"))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert dial(stranger).run(["true"]).ok


def test_a_host_key_that_has_changed(cluster: Loopback, host: Host, dial: Dial) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    cluster.stop(host)
    public = write_key(cluster.server(host).folder / "host_key")
    cluster.start(host)
    with pytest.raises(HostKeyMismatch, match=r"has changed: it is .*, known is .*known_hosts:1\)"):
        dial(host).run(["true"])
    with pytest.raises(HostKeyMismatch) as caught:
        dial(host).run(["true"])
    command = next(part for part in caught.value.hint.split("`") if part.startswith("ssh-keygen"))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    with open(cluster.known_hosts, "a") as known:
        known.write(f"[127.0.1.1]:{cluster.port} {public}\n")
    assert dial(host).run(["true"]).ok


def test_a_changed_host_key_of_another_type(cluster: Loopback, host: Host, dial: Dial) -> None:
    ecdsa = Path(f"{keygen(cluster.folder / 'key', '-N', '', '-t', 'ecdsa')}.pub").read_text()
    cluster.known_hosts.write_text(f"[127.0.1.1]:{cluster.port} {ecdsa}")
    with pytest.raises(HostKeyMismatch, match=r"it is ssh-ed25519 .* known is ecdsa-sha2-nistp256"):
        dial(host).run(["true"])


def test_a_revoked_host_key(cluster: Loopback, host: Host, dial: Dial) -> None:
    line = cluster.known_hosts.read_text()
    revoked = line.replace(line.split()[0], "@revoked *")
    cluster.known_hosts.write_text(line + revoked)
    with pytest.raises(HostKeyMismatch, match="is marked as revoked"):
        dial(host).run(["true"])


def test_a_certificate_that_vouches_for_the_host_is_said_not_to_be_checked(
    cluster: Loopback, host: Host, dial: Dial
) -> None:
    """The hint says how to take the key over ssh, which does check it."""
    line = cluster.known_hosts.read_text()
    cluster.known_hosts.write_text(line.replace(line.split()[0], "@cert-authority *.0.1.1"))
    with pytest.raises(HostKeyMismatch, match=r"known_hosts:1, @cert-authority\) cannot") as caught:
        dial(host).run(["true"])
    assert f"sed 's/^/[127.0.1.1]:{cluster.port} /' >> {cluster.known_hosts}`" in caught.value.hint


def test_known_hosts_that_cannot_be_read(host: Host, dial: Dial, tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch, match="known hosts cannot be read"):
        dial(with_ssh(host, known_hosts=str(tmp_path))).run(["true"])


def test_hashed_known_hosts(cluster: Loopback, host: Host, dial: Dial) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    command = ["ssh-keygen", "-q", "-H", "-f", str(cluster.known_hosts)]
    subprocess.run(command, check=True, capture_output=True)
    assert "127.0.1.1" not in cluster.known_hosts.read_text()
    os.utime(cluster.known_hosts, ns=(1, 1))
    assert dial(host).run(["true"]).ok


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_the_type_of_host_key_that_is_known_is_asked_for(
    loopback: Start, dial: Dial, tmp_path: Path, kind: str
) -> None:
    """The server also has an Ed25519 key, which would be preferred and is not known."""
    second = keygen(tmp_path / "second_host_key", "-N", "", "-t", kind)
    cluster = loopback(1, sshd_config=f"HostKey {second}")
    public = Path(f"{second}.pub").read_text()
    cluster.known_hosts.write_text(f"[127.0.1.1]:{cluster.port} {public}")
    assert dial(cluster.hosts[0]).run(["true"]).ok
