"""Forms of the new files: cut by size, with a checksum, verified; and how a merge that fails or is
interrupted leaves things."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from orchestrator.checkpoints import newfile, transfer
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.newfile import new_file, write_small
from orchestrator.checkpoints.shards import index_file
from orchestrator.errors import Busy, CheckpointError
from tests.unit.checkpoints.sets import CheckpointSet, raw_record, split, whole, write_set

MODEL = {
    "a": whole("Float32", (64, 8), 1),
    "b": whole("Float32", (8, 64), 2),
    "c": whole("Float16", (64,), 3),
}
LAYOUTS = {"a": split((2, 2), 0, -1), "b": split((2, 2), -1, 0), "c": split((2, 2), -1)}


@pytest.fixture
def made(tmp_path: Path) -> CheckpointSet:
    return write_set(tmp_path / "set", MODEL, [LAYOUTS])


def test_safetensors_are_read_by_the_reference_library(made: CheckpointSet, tmp_path: Path) -> None:
    path = merge(made.shards, made.strategy, tmp_path, fmt="safetensors").output
    found = load_file(path)
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: tensor.values.tobytes() for name, tensor in MODEL.items()
    }
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "ms"}


@pytest.mark.parametrize("size", [None, 2200])
def test_who_does_not_wait_for_the_disk_gets_the_same_files(
    made: CheckpointSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    durable = merge(made.shards, made.strategy, tmp_path / "a", max_shard_bytes=size)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    report = merge(made.shards, made.strategy, tmp_path / "b", max_shard_bytes=size, durable=False)
    assert synced == []
    for old, new in zip((*durable.files, durable.manifest), (*report.files, report.manifest)):
        assert new.read_bytes() == old.read_bytes()
        assert new.name == old.name
    merge(made.shards, made.strategy, tmp_path / "c")
    assert synced


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_cut_by_size_with_an_index(made: CheckpointSet, tmp_path: Path, fmt: str) -> None:
    report = merge(made.shards, made.strategy, tmp_path, fmt=fmt, max_shard_bytes=2200, verify=True)
    names = [path.name for path in report.files]
    assert names == [f"checkpoint_0-0000{i}-of-00002.{fmt}" for i in (1, 2)]
    assert report.output.name == f"checkpoint_0.{fmt}.index.json"
    index = json.loads(report.output.read_text())
    assert index["metadata"]["total_size"] == sum(t.values.nbytes for t in MODEL.values())
    for name, tensor in MODEL.items():
        stored = index_file(report.output.parent / index["weight_map"][name]).tensors[name]
        assert stored.nbytes == tensor.values.nbytes
    if fmt == "safetensors":
        other = report.output.parent / "param_name_map.json"
        assert json.loads(other.read_text()) == index


def test_a_checksum_is_written(made: CheckpointSet, tmp_path: Path) -> None:
    path = merge(made.shards, made.strategy, tmp_path, crc=True, verify=True).output
    data = path.read_bytes()
    assert data[-17:-10] == b"crc_num"
    assert int.from_bytes(data[-10:], "big") == zlib.crc32(data[:-17]) == index_file(path).crc


def test_the_manifest_of_a_verified_merge_has_digests(made: CheckpointSet, tmp_path: Path) -> None:
    report = merge(made.shards, made.strategy, tmp_path, verify=True)
    manifest = json.loads(report.manifest.read_text())
    (file,) = manifest["files"]
    assert file["sha256"] == hashlib.sha256(report.output.read_bytes()).hexdigest()
    assert [source["sha256"] for source in manifest["sources"]] == [
        hashlib.sha256(made.file(rank).read_bytes()).hexdigest() for rank in report.ranks
    ]
    assert manifest["tool"].startswith("glm2-orch ")
    assert manifest["strategy"]


def test_verify_finds_what_the_disk_got_wrong(
    made: CheckpointSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = transfer.write

    def faulty(descriptor: int, data: memoryview, offset: int) -> None:
        right(descriptor, data, offset)
        if len(data) > 500:
            os.pwrite(descriptor, bytes([data[7] ^ 1]), offset + 7)

    monkeypatch.setattr(transfer, "write", faulty)
    merge(made.shards, made.strategy, tmp_path / "silent")
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        merge(made.shards, made.strategy, tmp_path / "out", verify=True)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_failed_merge_leaves_the_earlier_file(made: CheckpointSet, tmp_path: Path) -> None:
    report = merge(made.shards, made.strategy, tmp_path)
    before = report.output.read_bytes(), report.manifest.read_bytes()
    made.file(2).write_bytes(made.file(2).read_bytes()[:-3])
    with pytest.raises(CheckpointError):
        merge(made.shards, made.strategy, tmp_path)
    assert (report.output.read_bytes(), report.manifest.read_bytes()) == before


def test_a_merge_killed_at_any_moment_can_be_repeated(tmp_path: Path) -> None:
    model = {f"w{i}": whole("Float32", (256, 256), i) for i in range(24)}
    made = write_set(tmp_path / "set", model, [{name: split((2, 2), -1, 0) for name in model}])
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.checkpoints.merge import merge\n"
        "def stop(done, total):\n"
        "    if done >= int(sys.argv[4]): os._exit(9)\n"
        "merge(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), progress=stop)\n"
    )
    out = tmp_path / "out.ckpt"
    for after in (1, 3 << 20, 11 << 20):
        argv = [sys.executable, "-c", program, made.shards, made.strategy, out, str(after)]
        assert subprocess.run(argv, check=False).returncode == 9
        assert not out.exists()
    merge(made.shards, made.strategy, out)
    data = out.read_bytes()
    assert all(tensor.values.tobytes() in data for tensor in model.values())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_merge_leaves_nothing(made: CheckpointSet, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.checkpoints.merge import merge\n"
        "def stop(done, total): os.kill(os.getpid(), signal.SIGINT)\n"
        "try: merge(*map(Path, sys.argv[1:]), progress=stop)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    out = tmp_path / "out.ckpt"
    argv = [sys.executable, "-c", program, made.shards, made.strategy, out]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout == "interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_source_that_changes_while_it_is_read(made: CheckpointSet, tmp_path: Path) -> None:
    def truncate(done: int, total: int) -> None:
        for rank in range(4):
            os.truncate(made.file(rank), 10)

    with pytest.raises(CheckpointError, match=r"rank \d, .* changed while it was being read"):
        merge(made.shards, made.strategy, tmp_path / "out", progress=truncate)
    assert not list((tmp_path / "out").rglob("*.ckpt"))


def test_a_source_is_never_replaced(made: CheckpointSet) -> None:
    before = made.file(0).read_bytes()
    with pytest.raises(CheckpointError, match="is one of the files to be merged"):
        merge(made.shards, made.strategy, made.file(0))
    assert made.file(0).read_bytes() == before


MEASURED = """
import sys
from pathlib import Path
from orchestrator.checkpoints.merge import merge
peak = 0
def look(done, total):
    global peak
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            peak = max(peak, int(line.split()[1]))
merge(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), verify=True, progress=look)
print(peak)
"""


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    model = {f"w{i}": whole("Float32", (2048, 2048), i) for i in range(6)}  # 16 MiB each
    layouts = {f"w{i}": split((2, 4), *((-1, 0) if i % 2 else (0, -1))) for i in range(6)}
    made = write_set(tmp_path / "set", model, [layouts])
    argv = [sys.executable, "-c", MEASURED, made.shards, made.strategy, tmp_path / "out.ckpt"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 << 10  # KiB


def test_two_merges_into_one_file(made: CheckpointSet, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(Busy, match="another process is writing"):
            merge(made.shards, made.strategy, tmp_path)

    merge(made.shards, made.strategy, tmp_path, progress=second)


def test_no_room(made: CheckpointSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr(newfile.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(CheckpointError, match=r"has 100 bytes free, checkpoint_0.ckpt needs \d+"):
        merge(made.shards, made.strategy, tmp_path / "out")


def test_a_folder_that_cannot_be_made(made: CheckpointSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*: Not a directory"):
        merge(made.shards, made.strategy, tmp_path / "file" / "below")


@pytest.mark.parametrize("prefix", ["", "a/b", ".hidden", "a\x1b[2J"])
def test_a_prefix_that_is_no_file_name(made: CheckpointSet, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(CheckpointError, match="is no prefix"):
        merge(made.shards, made.strategy, tmp_path, prefix=prefix)


def test_the_content_of_a_new_file_is_there_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def fail() -> None:
        with new_file(path, 4) as descriptor:
            os.pwrite(descriptor, b"half", 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    write_small(path, b"")
    assert path.read_bytes() == b""


def test_texts_become_metadata_of_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "rank_0"
    folder.mkdir(parents=True)
    note = raw_record("note", [0], "str", "ж✓".encode("utf-32-le"))
    weight = raw_record("w", [2], "Float32", bytes(8))
    (folder / "a-1_1.ckpt").write_bytes(note + weight)
    path = merge(tmp_path / "in", None, tmp_path / "out", fmt="safetensors", verify=True).output
    index = index_file(path)
    assert index.metadata == {"format": "ms", "note": "ж✓"}
    assert list(index.tensors) == ["w"]
