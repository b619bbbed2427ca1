"""``put`` and ``get``: whole files, checked, resumed; and every way in which they can fail."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Callable, List

import pytest

from orchestrator.errors import HostNotReady, HostUnreachable, SpecError
from orchestrator.transport.base import RemoteFile, Transport
from tests.cluster.sshd import Loopback, wait_until
from tests.cluster.transport.conftest import Dial

MakeTransport = Callable[..., Transport]


def tree(folder: Path) -> List[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def small_disk(tmp_path: Path, ending: ExitStack) -> Path:
    """A file system of 1 MiB; ``mount -o remount,ro`` works on it too."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root (and a container that allows it)")
    ending.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
    return disk


def test_many_files_with_their_modes(transport: Transport, tmp_path: Path) -> None:
    dest = tmp_path / "work/runs/r1"
    files = [
        RemoteFile(f"ranks/rank_{n}/env.sh", b"export RANK_ID=%d\n" % n, mode=0o600 + n % 2 * 0o155)
        for n in range(200)
    ]
    transport.put(files, str(dest))
    for file in files:
        written = dest / file.path
        assert written.read_bytes() == file.content
        assert stat.S_IMODE(written.stat().st_mode) == file.mode
    assert stat.S_IMODE(dest.stat().st_mode) == 0o700
    assert len(tree(dest)) == 1 + 200 + 200


def test_a_large_file_from_disk(transport: Transport, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20) * 50)
    transport.put([RemoteFile("big", source=source), RemoteFile("empty", b"")], f"{tmp_path}/run")
    assert (tmp_path / "run/big").read_bytes() == source.read_bytes()
    assert (tmp_path / "run/empty").read_bytes() == b""


def test_putting_again_replaces(transport: Transport, tmp_path: Path) -> None:
    transport.put([RemoteFile("f", b"old and longer"), RemoteFile("kept", b"k")], f"{tmp_path}/run")
    transport.put([RemoteFile("f", b"new")], f"{tmp_path}/run")
    assert (tmp_path / "run/f").read_bytes() == b"new"
    assert tree(tmp_path / "run") == ["f", "kept"]


def test_putting_nothing_makes_the_folder(transport: Transport, tmp_path: Path) -> None:
    transport.put([], f"{tmp_path}/a/run")
    assert (tmp_path / "a/run").is_dir()


def test_names_are_taken_as_they_are(transport: Transport, tmp_path: Path) -> None:
    name = 'it\'s $HOME `x` "ü"\n.txt'
    transport.put([RemoteFile(name, b"x")], f"{tmp_path}/run $(id)")
    assert (tmp_path / "run $(id)" / name).read_bytes() == b"x"
    assert b"".join(transport.stream(["cat", f"{tmp_path}/run $(id)/{name}"])) == b"x"


def test_a_path_that_leads_out_is_refused(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match="would leave the folder") as caught:
        transport.put([RemoteFile("ok", b""), RemoteFile("../x", b"")], f"{tmp_path}/run")
    assert caught.value.host == transport.name
    assert not (tmp_path / "run").exists()


def test_a_relative_folder_is_refused(transport: Transport) -> None:
    with pytest.raises(SpecError, match="must be an absolute path"):
        transport.put([RemoteFile("x", b"")], "runs")


def test_a_source_that_is_missing_here(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*/none to send it: No such file"):
        transport.put([RemoteFile("x", source=tmp_path / "none")], f"{tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_no_python_on_the_host(make_transport: MakeTransport, tmp_path: Path) -> None:
    transport = make_transport(f"{tmp_path}/bin/python9")
    with pytest.raises(HostNotReady, match=r"no usable Python at '.*/bin/python9'") as caught:
        transport.put([RemoteFile("x", b"x")], f"{tmp_path}/run")
    assert "`python` in the inventory" in caught.value.hint
    assert caught.value.host == transport.name
    assert not (tmp_path / "run").exists()


def test_a_python_that_cannot_be_run(make_transport: MakeTransport, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("text")
    with pytest.raises(HostNotReady, match="no usable Python"):
        make_transport(f"{tmp_path}/python").put([], f"{tmp_path}/run")


def test_a_python_that_breaks(make_transport: MakeTransport, tmp_path: Path) -> None:
    python = script(tmp_path / "python", "#!/bin/sh\necho 'libpython3 is missing' >&2\nexit 1\n")
    with pytest.raises(HostNotReady, match=r"exit status 1\): libpython3 is missing"):
        make_transport(python).put([RemoteFile("x", b"x" * 3_000_000)], f"{tmp_path}/run")


def test_a_python_that_says_nothing(make_transport: MakeTransport, tmp_path: Path) -> None:
    python = script(tmp_path / "python", "#!/bin/sh\nexit 0\n")
    with pytest.raises(HostNotReady, match="it said nothing"):
        make_transport(python).put([RemoteFile("x", b"x")], f"{tmp_path}/run")


def test_login_scripts_may_talk(make_transport: MakeTransport, tmp_path: Path) -> None:
    text = f'#!/bin/sh\necho "Welcome to the cluster"\nexec {sys.executable} "$@"\n'
    transport = make_transport(script(tmp_path / "python", text))
    transport.put([RemoteFile("x", b"x")], f"{tmp_path}/run")
    assert (tmp_path / "run/x").read_bytes() == b"x"


def test_pythons_environment_cannot_get_in_the_way(
    make_transport: MakeTransport, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    text = f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n'
    make_transport(script(tmp_path / "python", text)).put([RemoteFile("x", b"x")], f"{tmp_path}/r")
    assert (tmp_path / "r/x").read_bytes() == b"x"


def test_a_file_in_place_of_the_folder(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(HostNotReady, match=r"cannot write .*/work/runs/r1: Not a directory"):
        transport.put([RemoteFile("x", b"x")], f"{tmp_path}/work/runs/r1")


def test_a_folder_without_permission(transport: Transport, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(HostNotReady, match=r"cannot write .*: Permission denied") as caught:
            transport.put([RemoteFile("x", b"x")], f"{tmp_path}/run")
    finally:
        tmp_path.chmod(0o700)
    assert "permission" in caught.value.hint


def test_a_full_disk_is_seen_before_sending(transport: Transport, small_disk: Path) -> None:
    with pytest.raises(HostNotReady, match=r"No space left on device \(3,000,000 bytes") as caught:
        transport.put([RemoteFile("x", bytes(3_000_000))], f"{small_disk}/runs/r1")
    assert "free some space" in caught.value.hint
    assert tree(small_disk) == []


def test_a_disk_that_fills_up_meanwhile(transport: Transport, small_disk: Path) -> None:
    """All fits by its size, but the small files take a block each."""
    files = [RemoteFile(f"f{n}", b"x" * 10) for n in range(1000)]
    with pytest.raises(HostNotReady, match=r"cannot write .*/f\d+: No space left on device"):
        transport.put(files, f"{small_disk}/runs/r1")
    assert tree(small_disk) == []


def test_a_read_only_disk(transport: Transport, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(HostNotReady, match=r"cannot write .*: Read-only file system") as caught:
        transport.put([RemoteFile("x", b"x")], f"{small_disk}/runs/r1")
    assert "remount" in caught.value.hint


def test_a_put_whose_connection_dies_leaves_nothing(
    loopback: Callable[[int], Loopback], dial: Dial, tmp_path: Path
) -> None:
    """The session's sshd is killed from inside when the first megabyte has gone through."""
    cluster = loopback(1)
    text = f"""#!/bin/sh
session=$(cut -d' ' -f4 /proc/$PPID/stat)
(head -c 1000000; kill -9 $session) | {sys.executable} "$@"
touch {tmp_path}/receiver-has-ended
"""
    host = replace(cluster.hosts[0], python=script(tmp_path / "python", text))
    with pytest.raises(HostUnreachable, match=r"connection lost .* there is unknown"):
        dial(host).put([RemoteFile("a/x", bytes(20_000_000))], f"{tmp_path}/run")
    wait_until((tmp_path / "receiver-has-ended").exists, "the receiver to end")
    assert not (tmp_path / "run").exists()
