"""The receiver of files: nothing half-written, nothing outside, nothing left after a failure."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.node.unpack import Refused, receive


def framed(files: List[Tuple[str, bytes]], mode: int = 0o600) -> bytes:
    entries = [{"path": path, "size": len(data), "mode": mode} for path, data in files]
    body = b"".join(data + hashlib.sha256(data).hexdigest().encode() for _, data in files)
    return json.dumps({"files": entries}).encode() + b"\n" + body


def tree(folder: Path) -> List[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


component = st.text("ab.-_ é\n", min_size=1, max_size=4).filter(lambda t: t not in (".", ".."))


@given(
    st.dictionaries(
        st.lists(component, min_size=2, max_size=2).map("/".join), st.binary(), max_size=8
    )
)
def test_what_is_sent_is_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, files: Dict[str, bytes]
) -> None:
    dest = tmp_path_factory.mktemp("put") / "run"
    digests = receive(io.BytesIO(framed(list(files.items()))), str(dest))
    assert {path: (dest / path).read_bytes() for path in files} == files
    assert digests == {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    assert len([p for p in dest.rglob("*") if p.is_file()]) == len(files)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        receive(io.BytesIO(framed([("a/run.sh", b"x")], mode=0o755)), str(tmp_path / "new/run"))
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "new/run/a/run.sh") == 0o755
    for folder in ("new", "new/run", "new/run/a"):
        assert mode_of(tmp_path / folder) == 0o700


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old and longer")
    receive(io.BytesIO(framed([("f", b"new")])), str(tmp_path))
    assert (tmp_path / "f").read_bytes() == b"new"
    assert tree(tmp_path) == ["f"]


def test_a_cut_connection_leaves_nothing_and_changes_nothing(tmp_path: Path) -> None:
    sent = framed([("old", b"new"), ("sub/b", b"B" * 50)])
    (tmp_path / "old").write_bytes(b"old")
    for cut in range(len(sent)):
        with pytest.raises(Refused, match=r"connection ended|damaged"):
            receive(io.BytesIO(sent[:cut]), str(tmp_path))
        assert tree(tmp_path) == ["old"], cut
        assert (tmp_path / "old").read_bytes() == b"old"


def test_damage_is_noticed(tmp_path: Path) -> None:
    sent = framed([("a", b"AAAA")]).replace(b"AAAA", b"AABA")
    with pytest.raises(Refused, match="a arrived damaged: SHA-256"):
        receive(io.BytesIO(sent), str(tmp_path / "run"))
    assert tree(tmp_path) == []


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a//b", ".", "a/", "a\0b"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused, match="would leave the folder"):
        receive(io.BytesIO(framed([("ok", b""), (path, b"x")])), str(tmp_path / "run"))
    assert tree(tmp_path) == []


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="would leave the folder"):
        receive(io.BytesIO(framed([("logs/x", b"x")])), str(tmp_path / "run"))
    assert tree(tmp_path) == ["elsewhere", "run", "run/logs"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    receive(io.BytesIO(framed([("a/x", b"x")])), str(tmp_path / "run"))
    assert (tmp_path / "disk/a/x").read_bytes() == b"x"


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(Refused, match=r"cannot write .*run: Not a directory") as caught:
        receive(io.BytesIO(framed([("x", b"x")])), str(tmp_path / "run"))
    assert "workdir" in caught.value.hint


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run/x").mkdir(parents=True)
    with pytest.raises(Refused, match=r"cannot write .*run/x: Is a directory"):
        receive(io.BytesIO(framed([("a", b""), ("x", b"x")])), str(tmp_path / "run"))
    assert tree(tmp_path) == ["run", "run/x"]


def test_the_same_path_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="sent twice"):
        receive(io.BytesIO(framed([("a", b"1"), ("a", b"2")])), str(tmp_path / "run"))


def test_more_than_fits_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    header = {"files": [{"path": "a", "size": 1 << 60, "mode": 0o600}]}
    stream = io.BytesIO(json.dumps(header).encode() + b"\n")
    with pytest.raises(Refused, match=r"No space left on device \(1,152,921,504,606,846,976 bytes"):
        receive(stream, str(tmp_path / "run"))
    assert tree(tmp_path) == []
