"""Which staged trees of a host go, and which stay."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import pytest

from orchestrator.node.retention import look

OLD, DAY_S = 40 * 86_400, 86_400.0
DIGEST = "ab" * 32


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "work[1]"


def tree(workdir: Path, name: str = DIGEST, *, age_s: float = OLD) -> Path:
    folder = workdir / "staged" / name
    (folder / "content" / "sub").mkdir(parents=True)
    file = folder / "content" / "sub" / "file"
    file.write_text("12345")
    file.chmod(0o400)
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


def answer(workdir: Path, **request: Any) -> Optional[Dict[str, Any]]:
    """What is said of the only tree."""
    whole = {"workdir": str(workdir), "keep": [], "age_s": DAY_S, "remove": True, **request}
    trees = look(json.loads(json.dumps(whole)))["trees"]
    assert len(trees) <= 1
    return trees[0] if trees else None


@pytest.fixture
def living_run(workdir: Path) -> Iterator[Path]:
    run = workdir / "runs" / "r"
    (run / "ranks" / "rank_0").mkdir(parents=True)
    with open(run / "supervisor.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield run


def test_an_old_tree_goes_whole_or_not(workdir: Path) -> None:
    for name in (DIGEST, f"{DIGEST}.partial", f"{DIGEST}.removed"):
        folder = tree(workdir, name)
        said = answer(workdir)
        assert said is not None
        assert (said["kept"], said["error"], said["bytes"]) == (None, None, 5)
        assert not folder.exists()
    assert answer(workdir) is None


def test_only_looking_removes_nothing(workdir: Path) -> None:
    folder = tree(workdir)
    said = answer(workdir, remove=False)
    assert said is not None
    assert said["kept"] is None
    assert folder.exists()


def test_what_the_inventory_stages_stays(workdir: Path) -> None:
    folder = tree(workdir)
    said = answer(workdir, keep=[DIGEST])
    assert said is not None
    assert said["kept"] == "this inventory stages it"
    assert folder.exists()


def test_what_was_used_lately_stays(workdir: Path) -> None:
    tree(workdir, age_s=DAY_S / 2)
    said = answer(workdir)
    assert said is not None
    assert said["kept"] == "used lately"


def test_what_is_being_filled_stays(workdir: Path) -> None:
    folder = tree(workdir, f"{DIGEST}.partial")
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        said = answer(workdir)
    finally:
        os.close(handle)
    assert said is not None
    assert said["kept"] == "it is being filled"


@pytest.mark.parametrize("file", ["job.yaml", "spec.json", "ranks/rank_0/env.sh"])
def test_what_a_living_run_names_stays(workdir: Path, living_run: Path, file: str) -> None:
    folder = tree(workdir)
    (living_run / file).write_text(f"path: {folder}/content/sub/file")
    said = answer(workdir)
    assert said is not None
    assert said["kept"] == "a living run uses it"


def test_what_a_living_run_reaches_by_a_link_stays(workdir: Path, living_run: Path) -> None:
    folder = tree(workdir)
    (folder / "places.json").write_text('["/data/glm2.ckpt"]')
    os.utime(folder, (1, 1))
    (living_run / "job.yaml").write_text("load_checkpoint: /data/glm2.ckpt")
    said = answer(workdir)
    assert said is not None
    assert said["kept"] == "a living run uses it"


def test_a_run_that_is_over_keeps_nothing(workdir: Path) -> None:
    folder = tree(workdir)
    run = workdir / "runs" / "over"
    run.mkdir(parents=True)
    (run / "supervisor.lock").write_text("")
    (run / "job.yaml").write_text(f"path: {folder}")
    said = answer(workdir)
    assert said is not None
    assert said["kept"] is None


def test_links_into_a_tree_go_with_it_and_others_stay(workdir: Path, tmp_path: Path) -> None:
    folder = tree(workdir)
    ours, elsewhere, file = (tmp_path / name for name in ("ours", "elsewhere", "file"))
    ours.symlink_to(folder / "content")
    elsewhere.symlink_to(tmp_path)
    file.write_text("")
    places = [str(ours), str(elsewhere), str(file), str(tmp_path / "gone")]
    (folder / "places.json").write_text(json.dumps(places))
    os.utime(folder, (1, 1))
    assert answer(workdir) is not None
    assert not ours.is_symlink()
    assert elsewhere.is_symlink()
    assert file.exists()


def test_strangers_in_the_folder_are_left_alone(workdir: Path, tmp_path: Path) -> None:
    (workdir / "staged" / "mine").mkdir(parents=True)
    (workdir / "staged" / DIGEST).symlink_to(tmp_path)
    assert answer(workdir) is None
    assert (workdir / "staged" / "mine").exists()


def test_a_host_that_nothing_was_staged_to(workdir: Path) -> None:
    assert answer(workdir) is None
