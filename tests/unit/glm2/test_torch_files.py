"""Files of PyTorch: nothing in their pickles runs, and damage is an error."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Tuple

import numpy as np
import pytest

from glm2.__main__ import main
from glm2.errors import CheckpointError
from glm2.formats.source import find_source


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


class Evil:
    """Pickles as a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Tuple[Any, ...]:
        return os.system, (self.command,)


class TestTorchFiles:
    def evil(self, tmp_path: Path, value: object, protocol: int) -> Path:
        file = tmp_path / "pytorch_model.bin"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(value, protocol))
            archive.writestr("archive/version", "3\n")
        return file

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickle_that_runs_code_is_refused_and_does_not(
        self, tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        proof = tmp_path / "proof"
        self.evil(tmp_path, OrderedDict(weight=Evil(f"touch {proof}")), protocol)
        assert main(["convert", "--from", str(tmp_path), "--to", f"{tmp_path}/a.ckpt"]) == 10
        said = capsys.readouterr().err
        assert f"{tmp_path}/pytorch_model.bin is refused: its pickle names " in said
        assert ".system, which is not part of a state dict" in said
        assert not proof.exists()
        assert not (tmp_path / "a.ckpt").exists()

    @pytest.mark.parametrize(
        "value",
        [print, Path("a"), np.float32(1), {"w": np.zeros(3)}, Evil, OrderedDict(a=io.BytesIO)],
    )
    def test_nothing_but_tensors_is_known(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(CheckpointError, match="is refused: its pickle names"):
            find_source(self.evil(tmp_path, value, 2))

    @pytest.mark.parametrize("value", [3, [1, 2], {"a": 3}, {"a": {"b": "c"}}])
    def test_no_dict_of_tensors(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(CheckpointError, match=r"no dict of tensors, but|a is no tensor, but"):
            find_source(self.evil(tmp_path, value, 2))

    def test_every_cut_and_every_flipped_byte_is_an_error_or_harmless(
        self, torch: Any, tmp_path: Path
    ) -> None:
        whole = tmp_path / "a.bin"
        torch.save({"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(2)}, whole)
        data = whole.read_bytes()
        draw = np.random.default_rng(1)
        broken = [data[: int(at)] for at in draw.integers(0, len(data), 40)]
        for at in draw.integers(0, len(data), 400):
            broken.append(
                data[:at] + bytes([data[at] ^ int(draw.integers(1, 256))]) + data[at + 1 :]
            )
        file = tmp_path / "b.bin"
        refused = 0
        for content in broken:
            file.write_bytes(content)
            try:
                for tensor in find_source(file).tensors.values():
                    assert sum(map(len, tensor.blocks())) in (8, 24)
            except CheckpointError:
                refused += 1
        assert refused >= 40
