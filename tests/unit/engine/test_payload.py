"""What is sent to a host of its own accord: the node side, readable and compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator.engine.payload import node_files


def test_the_node_side_runs_from_what_was_compiled_here(tmp_path: Path) -> None:
    for file in node_files():
        path = tmp_path / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content if file.source is None else file.source.read_bytes())
    compiled = sorted((tmp_path / "node" / "__pycache__").iterdir())
    assert all(path.name.endswith(f".{sys.implementation.cache_tag}.pyc") for path in compiled)
    sources = {path.name.partition(".")[0] for path in compiled}
    assert {"supervisor", "journal", "stopping", "certificate"} <= sources
    for name in sources - {"supervisor"}:  # not read, so that they could be of another time
        (tmp_path / "node" / f"{name}.py").write_text("raise SystemExit('compiled again')")
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            str(tmp_path / "node" / "supervisor.py"),
            "arm",
            "--run-dir",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "compiled again" not in done.stderr
    assert "spec.json" in done.stdout + done.stderr
