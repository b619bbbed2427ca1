"""What is kept is for its owner, who is asked is who was meant, and no file runs anything."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.errors import SpecError
from orchestrator.inventory import parse_inventory
from orchestrator.runs.layout import RunStore
from orchestrator.runs.quarantine import Quarantine

SOURCES = sorted(Path(orchestrator.__file__).parent.rglob("*.py"))


def readable_by_others(root: Path) -> list:
    """Files and folders below ``root`` that somebody else could read: all the way is open."""
    open_ones = []
    for folder, folders, files in os.walk(root):
        closed = {name for name in folders if _closed(Path(folder) / name)}
        folders[:] = [name for name in folders if name not in closed]
        open_ones += [Path(folder) / name for name in files if not _closed(Path(folder) / name)]
        open_ones += [Path(folder) / name for name in folders]
    return open_ones


def _closed(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.fixture
def generous():
    """The usual umask, which gives everybody leave to read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_the_state_folder_is_for_its_owner(tmp_path, generous):
    home = tmp_path / "home"
    paths = RunStore(home).create("r1")
    paths.plan.write_text("{}")
    assert [path for path in (home, home / "runs", paths.dir) if not _closed(path)] == []
    assert readable_by_others(home) == []
    Quarantine(tmp_path / "other", "c").add({"n": "x"}, by="operator")
    assert not readable_by_others(tmp_path / "other")


def test_a_real_run_leaves_nothing_that_others_read(tmp_path, generous):
    inventory = tmp_path / "here.yaml"
    inventory.write_text(
        "hosts: localhost\ndefaults: {connection: local, device_target: CPU, devices: '[0,1)', "
        f"workdir: '{tmp_path}/work'}}\n"
    )
    command = ["launch", "-i", str(inventory), "--skip-preflight", "--worker-command", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", *command, "finetune", "--env", "KEY=x"],
        env={**os.environ, "GLM2_ORCH_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert readable_by_others(tmp_path / "home") == []
    (run,) = (tmp_path / "work" / "runs").iterdir()
    secrets = [run / "spec.json", *run.glob("ranks/*/env.sh"), *run.glob("ranks/*/launch.sh")]
    assert len(secrets) >= 3
    assert [path for path in secrets if not _closed(path) and not _closed(run)] == []


def test_no_line_of_ours_trusts_an_unknown_server():
    text = {path: path.read_text("utf-8") for path in SOURCES}
    for word in ("AutoAddPolicy", "WarningPolicy", "StrictHostKeyChecking=no", "accept-new"):
        assert [path for path in SOURCES if word in text[path]] == []


def test_nothing_is_unpickled_evaluated_or_given_to_a_local_shell():
    forbidden = {"eval", "exec", "system", "popen"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                found += [(path, name) for name in names & {"pickle", "marshal", "shelve"}]
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                process = ast.unparse(node.func).startswith("subprocess.")
                shell = process and any(word.arg == "shell" for word in node.keywords)
                if shell or (name in forbidden and not _is_harmless(node)):
                    found.append((path, ast.unparse(node)))
    assert found == []


def _is_harmless(node: ast.Call) -> bool:
    """``exec`` and ``eval`` as methods of something of ours, and ``platform.system()``."""
    if not isinstance(node.func, ast.Attribute):
        return False
    owner = ast.unparse(node.func.value)
    return owner not in ("os", "builtins")


def parsed(text: str):
    return parse_inventory(
        text, "i.yaml", folder=Path("/"), default_python="python3", home=Path("/home/u")
    )


HOST = "defaults: {device_target: CPU, devices: '[0,1)', workdir: /w}\n"


@pytest.mark.parametrize(
    "text",
    [
        "hosts: !!python/object/apply:os.system ['touch pwned']\n" + HOST,
        "hosts: '-oProxyCommand=touch pwned'\n" + HOST,
        "hosts: 'n;touch pwned'\n" + HOST,
        "hosts: '../../etc'\n" + HOST,
        'hosts: "n\\e[2J"\n' + HOST,
        "hosts: {n: {address: '-oProxyCommand=touch'}}\n" + HOST,
        "hosts: {n: {ssh: {user: '-oProxyCommand=touch'}}}\n" + HOST,
        "hosts: {n: {ssh: {user: 'a b'}}}\n" + HOST,
        "hosts: {n: {python: '-c'}}\n" + HOST,
        "hosts: {n: {workdir: '/w/../../etc'}}\n" + HOST,
        "hosts: {n: {workdir: 'etc'}}\n" + HOST,
        "hosts: {n: {env: {'A;touch pwned': x}}}\n" + HOST,
        "hosts: 'n[0-9][0-9][0-9][0-9][0-9][0-9]'\n" + HOST,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nhosts: [*e,*e,*e]\n",
        "hosts: " + "[" * 5000,
    ],
)
def test_a_hostile_inventory_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as refused:
        parsed(text)
    assert "\x1b" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_security_policy_is_there():
    text = (Path(__file__).parents[3] / "SECURITY.md").read_text("utf-8")
    for word in ("trusted", "known_hosts", "0700", "report"):
        assert word in text
