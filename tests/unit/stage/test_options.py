"""``stage:`` of a job, manifests of local files, and the tree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine import manifests
from orchestrator.engine.hosts import load_hosts, save_hosts
from orchestrator.engine.manifests import read_source
from orchestrator.engine.staging import CHILDREN, tree
from orchestrator.errors import SpecError
from orchestrator.inventory import Gateway, Host, ServerId, SshAddress, SshOptions
from orchestrator.node.staged import StageError, Store
from orchestrator.stage_options import StageItem, StageOptionError, find_item, parse_stage


def test_names_and_places() -> None:
    stage = parse_stage(
        ["data", {"from": "~x/w", "to": "/data/glm2.ckpt"}, {"from": "/a/b", "to": "c"}], "/here"
    )
    assert [(i.source, i.name, i.place) for i in stage.items] == [
        ("/here/data", "data", None),
        ("/here/~x/w", "glm2.ckpt", "/data/glm2.ckpt"),
        ("/a/b", "c", None),
    ]
    assert not stage.encrypt
    assert parse_stage({"encrypt": True, "files": ["a"]}, "/").encrypt


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data", "must be a list"),
        ([{"to": "x"}], "`from` is missing"),
        ([{"from": "a", "too": "b"}], "unknown key 'too'"),
        ([{"from": "a", "to": "../b"}], "neither a name nor"),
        ([{"from": "a", "to": "/x/../b"}], "neither a name nor"),
        (["a", "b/a"], "staged twice"),
        ({"files": ["a"], "encrypt": "yes"}, "neither true nor false"),
        ([{"from": "a", "exclude": "x"}], "list of patterns"),
    ],
)
def test_what_is_wrong_is_said(value: Any, said: str) -> None:
    with pytest.raises(StageOptionError, match=said):
        parse_stage(value, "/")


def test_references() -> None:
    stage = parse_stage(["data"], "/")
    found = find_item(stage, "staged:data/train.json")
    assert found is not None
    assert found[1] == "train.json"
    assert find_item(stage, "/data/train.json") is None
    for text in ("staged:dta", "staged:data/../x"):
        with pytest.raises(StageOptionError):
            find_item(stage, text)


def test_a_digest_is_of_content_and_names_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/f").write_text("x")
    first, second = (read_source(StageItem(str(tmp_path / n), n), tmp_path / "c") for n in "ab")
    assert first.digest == second.digest
    (tmp_path / "b/sub/f").write_text("y")
    assert read_source(StageItem(str(tmp_path / "b"), "b"), tmp_path / "c").digest != first.digest


def test_unchanged_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    os.utime(file, (1, 1))
    monkeypatch.setattr(manifests, "LARGE_BYTES", 0)
    item = StageItem(str(file), "f")
    said: List[str] = []
    first = read_source(item, tmp_path / "c", said.append)
    assert read_source(item, tmp_path / "c", said.append) == first
    assert len(said) == 1
    monkeypatch.setattr(manifests, "BLOCK_BYTES", 7)
    read_source(item, tmp_path / "c", said.append)
    assert len(said) == 2


def test_sources_that_cannot_be_staged(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(SpecError, match="holds no file"):
        read_source(StageItem(str(tmp_path / "d"), "d"), tmp_path / "c")
    (tmp_path / "d/link").symlink_to(tmp_path)
    with pytest.raises(SpecError, match="link to a folder"):
        read_source(StageItem(str(tmp_path / "d"), "d"), tmp_path / "c")
    with pytest.raises(SpecError, match="No such file"):
        read_source(StageItem(str(tmp_path / "none"), "d"), tmp_path / "c")
    os.mkfifo(tmp_path / "d/pipe")
    item = StageItem(str(tmp_path / "d"), "d", exclude=("link",))
    with pytest.raises(SpecError, match="neither a file nor a folder"):
        read_source(item, tmp_path / "c")


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_every_host_has_a_way_up_to_one_that_has_all(count: int, data: st.DataObject) -> None:
    whole = data.draw(st.integers(0, count))
    names = [f"h{number}" for number in range(count)]
    above = tree(names, whole)
    tops = names[: max(whole, 1)]
    children = dict.fromkeys(names, 0)
    for name in names:
        if name in tops:
            assert above[name] == ()
            continue
        children[above[name][0]] += 1
        assert above[name][-1] in tops
        assert len(above[name]) <= count.bit_length()
    assert max(children.values()) <= CHILDREN


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", ".", "a/../../x"])
def test_a_manifest_cannot_leave_its_folder(tmp_path: Path, path: str) -> None:
    import hashlib
    import json

    files = [{"path": path, "size": 0, "executable": False, "blocks": []}]
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(StageError, match="leave the folder"):
        Store(str(tmp_path), [{"digest": digest, "files": files}], 4)
    with pytest.raises(StageError, match="does not have the digest"):
        Store(str(tmp_path), [{"digest": "0" * 64, "files": files}], 4)


def test_the_way_to_a_host_is_kept_with_its_run(tmp_path: Path) -> None:
    gateway = Gateway(SshAddress("g"), "u", 2222, "/k", "/kh")
    ssh = SshOptions(gateways=(gateway,), proxy_command="nc a b")
    host = Host("n", SshAddress("a"), ServerId("s"), (0,), "CPU", "/w", "py", ssh=ssh)
    save_hosts(tmp_path / "hosts.json", [host])
    assert load_hosts(tmp_path / "hosts.json") == [host]
