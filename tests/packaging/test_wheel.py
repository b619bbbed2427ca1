"""The wheel carries everything, and works where nothing else of the project is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "project"
    # A copy of what git knows, so that building leaves nothing in the checkout.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(source)])
    (found,) = out.glob("glm2_orch-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An empty environment with the wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", str(folder)])
    run([f"{folder}/bin/python", "-m", "pip", "install", "-q", str(wheel)])
    return folder / "bin"


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_templates_inventories_and_configs_are_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (
        ("templates", "orchestrator/templates"),
        ("inventories", "orchestrator/inventories"),
        ("glm2/configs", "glm2/configs"),
        ("orchestrator/node", "orchestrator/node"),
        ("orchestrator/diagnosis", "orchestrator/diagnosis"),
    ):
        files = {f"{inside}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert files <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_the_installed_command_plans_from_another_folder(installed, tmp_path):
    command = str(installed / "glm2-orch")
    assert "launch" in run([command, "--help"], cwd=tmp_path)
    plan = [command, "plan", "-i", "cluster12", "finetune", "-o", "json"]
    assert run(plan, cwd=tmp_path) == run(plan, cwd="/")
    packages = run([str(installed / "python"), "-m", "pip", "list"], cwd=tmp_path)
    assert "mindspore" not in packages.lower()
    assert "torch" not in packages.lower()
