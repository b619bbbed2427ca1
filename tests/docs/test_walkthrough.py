"""The commands of the README and of the tutorial, typed in a fresh copy of the checkout."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator

import pytest

from tests.cluster.sshd import SSHD
from tests.docs.console import typed, unseen

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("Makefile", "setup.cfg", "pyproject.toml")
_OWN = (".venv", ".loopback", ".git", "inventories", "output", *_COPIED)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the checkout after `make setup`; hosts have their own port."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in _OWN:
            (folder / entry.name).symlink_to(entry)
    for name in _COPIED:
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (0, 0))  # so that make finds .venv up to date
    shutil.copytree(ROOT / "inventories", folder / "inventories")
    loopback = folder / "inventories" / "loopback12.yaml"
    text = loopback.read_text("utf-8")
    text = text.replace("port: 2222", f"port: {_free_port()}")
    text = text.replace("/tmp/glm2-loopback", str(tmp_path / "hosts"))
    loopback.write_text(text, "utf-8")
    for name in ("local.yaml", "loopback12.yaml"):  # `job:` is their last section
        with open(folder / "inventories" / name, "a", encoding="utf-8") as inventory:
            inventory.write(f"  scheduler_port: {_free_port()}\n")
    venv = folder / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name not in (".test", ".worker"):
            (venv / entry.name).symlink_to(entry)
    for name in (".test", ".worker"):
        (venv / name).touch()
    return folder


@pytest.fixture
def environment(checkout: Path, tmp_path: Path) -> Dict[str, str]:
    (tmp_path / "home").mkdir()
    port = (checkout / "inventories" / "loopback12.yaml").read_text("utf-8").split("port: ")[1]
    return {
        **{name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "GLM2_ORCH_HOME": str(tmp_path / "state"),
        "LOOPBACK_PORT": port.split()[0],
        "COLUMNS": "110",
    }


@pytest.fixture
def servers(checkout: Path, environment: Dict[str, str]) -> Iterator[None]:
    """Ends the ssh servers when a page did not come to its own end."""
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    yield
    subprocess.run(["make", "loopback-down"], cwd=checkout, env=environment, check=False)


def type_all(page: Path, checkout: Path, environment: Dict[str, str]) -> int:
    """Types the commands of a page; their number. Each must succeed and print what is said."""
    commands = typed(page.read_text("utf-8"))
    for one in commands:
        done = subprocess.run(
            ["bash", "-c", one.command],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"$ {one.command}\n{done.stdout}"
        line = unseen(one.expected, done.stdout)
        assert line is None, f"$ {one.command}\n{done.stdout}\nnot seen: {line}"
    return len(commands)


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("servers")
def test_the_tutorial(checkout: Path, environment: Dict[str, str]) -> None:
    assert type_all(ROOT / "docs" / "tutorial.md", checkout, environment) > 10


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.timeout(300)
def test_the_readme(checkout: Path, environment: Dict[str, str]) -> None:
    assert type_all(ROOT / "README.md", checkout, environment) > 2


def test_the_chinese_readme_types_the_same_and_expects_no_more() -> None:
    pages = [(ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")]
    english, chinese = map(typed, pages)
    assert [one.command for one in english] == [one.command for one in chinese]
    for ours, theirs in zip(english, chinese):
        assert [line for line in ours.expected if line in theirs.expected] == theirs.expected


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
