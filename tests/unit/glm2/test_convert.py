"""Conversion: from what PyTorch and safetensors write, and back, bit by bit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2.__main__ import main
from glm2.convert import convert, select, size_of
from glm2.errors import CheckpointError, ConfigError, Glm2Error, UsageError
from glm2.formats import ckpt
from glm2.formats.cast import from_float32, to_float32
from glm2.formats.hub import config_text, inverse_frequencies, read_config
from glm2.formats.source import Source, find_source
from glm2.formats.tensor import StoredTensor, regroup
from glm2.weights import INV_FREQ, weight_shapes
from tests.unit.glm2.weight_files import CONFIG, TABLE, official, same_bits, save_shards

REPOSITORY = Path(__file__).parents[3]
TYPES = ("float16", "bfloat16", "float32")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def save_safetensors(state: Dict[str, Any], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, str(file))


def read_folder(folder: Path) -> Dict[str, Any]:
    from safetensors.torch import load_file

    found: Dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(str(file)))
    return found


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("kind", ["pth", "bin shards", "safetensors shards"])
    @pytest.mark.parametrize("middle", ["middle.ckpt", "middle.safetensors"])
    def test_is_bit_identical(
        self, torch: Any, tmp_path: Path, dtype: str, kind: str, middle: str
    ) -> None:
        state = official(torch, dtype)
        if kind == "pth":
            (tmp_path / "config.json").write_text(config_text(CONFIG, dtype))
            source = tmp_path / "weights.pth"
            torch.save(state, source)
        elif kind == "bin shards":
            source = save_shards(tmp_path / "in", state, "bin", torch.save).parent
        else:
            source = save_shards(tmp_path / "in", state, "safetensors", save_safetensors)
        there = ["convert", "--from", str(source), "--to", str(tmp_path / middle)]
        assert main(there) == 0
        back = ["convert", "--from", str(tmp_path / middle), "--to", str(tmp_path / "out")]
        (tmp_path / "config.json").write_text(config_text(CONFIG, dtype))
        assert main([*back, "--max_shard_size", "2KB"]) == 0
        found = read_folder(tmp_path / "out")
        assert set(found) == set(state)
        assert all(same_bits(torch, state[name], found[name]) for name in state)

    def test_what_it_writes_is_read_from_itself(self, torch: Any, tmp_path: Path) -> None:
        """The folder of hf has its config.json: nothing has to be named on the way back."""
        torch.save(official(torch, "float16"), tmp_path / "a.pth")
        (tmp_path / "config.json").write_text(config_text(CONFIG, "float16"))
        assert main(["convert", "--from", str(tmp_path / "a.pth"), "--to", f"{tmp_path}/b"]) == 0
        (tmp_path / "config.json").unlink()
        assert main(["convert", "--from", f"{tmp_path}/b", "--to", f"{tmp_path}/c.ckpt"]) == 0
        assert sorted(os.listdir(tmp_path / "b")) == ["config.json", "model.safetensors"]

    def test_views_and_parameters_of_pytorch(self, torch: Any, tmp_path: Path) -> None:
        """Tensors that share a storage, are turned, or begin in its middle."""
        state = official(torch, "float32")
        dense = "transformer.encoder.layers.0.self_attention.dense.weight"
        state[dense] = state[dense].t().contiguous().t()
        mlp = "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"
        state[mlp] = torch.randn(50, 40)[1:49, 3:19]
        last = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
        state[last] = torch.nn.Parameter(state[last])
        state["transformer.output_layer.weight"] = state[TABLE]
        norm = "transformer.encoder.final_layernorm.weight"
        state[norm] = torch.tensor([0.25]).expand(16)
        torch.save(state, tmp_path / "a.pth")
        select(find_source(tmp_path / "a.pth"), CONFIG)
        for name, tensor in find_source(tmp_path / "a.pth").tensors.items():
            assert b"".join(tensor.blocks()) == state[name].detach().numpy().tobytes(), name


class TestTypes:
    @pytest.mark.parametrize("dtype", TYPES)
    @given(st.data())
    def test_the_same_rounding_as_pytorchs(self, dtype: str, data: st.DataObject) -> None:
        torch = pytest.importorskip("torch")
        values = np.array(data.draw(st.lists(st.floats(width=32), min_size=1)), np.float32)
        expected = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(to_float32(from_float32(values, dtype), dtype), expected)

    def test_dtype_converts_all_weights(self, torch: Any, tmp_path: Path) -> None:
        state = official(torch, "float16")
        torch.save(state, tmp_path / "a.pth")
        (tmp_path / "config.json").write_text(config_text(CONFIG, "float16"))
        words = ["convert", "--from", f"{tmp_path}/a.pth", "--to", f"{tmp_path}/out"]
        assert main([*words, "--dtype", "bfloat16"]) == 0
        found = read_folder(tmp_path / "out")
        for name in set(state) - {INV_FREQ}:
            assert same_bits(torch, found[name], state[name].to(torch.bfloat16))
        assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"

    def test_a_value_beyond_the_type_is_refused(self, torch: Any, tmp_path: Path) -> None:
        state = official(torch, "float32")
        state[TABLE][3, 4] = 70000.0
        torch.save(state, tmp_path / "a.pth")
        weights = select(find_source(tmp_path / "a.pth"), CONFIG, "float16")
        with pytest.raises(CheckpointError, match=rf"{TABLE} has the value 70000, which float16"):
            convert(weights, tmp_path / "b.ckpt", "ckpt", 10**9)
        assert os.listdir(tmp_path) == ["a.pth"]

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("channels", [8, 32, 128])
    def test_the_rotary_frequencies_are_pytorchs(
        self, torch: Any, dtype: str, channels: int
    ) -> None:
        config = type(CONFIG)(**{**vars(CONFIG), "kv_channels": channels})
        made = inverse_frequencies(config, dtype)
        state = official(torch, dtype, config)
        assert made.data == state[INV_FREQ].view(torch.uint8).numpy().tobytes()


class TestMisfit:
    def test_everything_that_differs_is_listed_at_once(self, torch: Any, tmp_path: Path) -> None:
        state = official(torch, "float16")
        for layer in range(2):
            del state[f"transformer.encoder.layers.{layer}.input_layernorm.weight"]
        state["transformer.prefix_encoder.embedding.weight"] = torch.zeros(2, 2)
        state["transformer.output_layer.weight"] = torch.zeros(31, 16, dtype=torch.int8)
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(CheckpointError) as caught:
            select(find_source(tmp_path / "a.pth"), CONFIG)
        assert caught.value.message.splitlines()[1:] == [
            "    missing transformer.encoder.layers.0-1.input_layernorm.weight",
            "    unexpected transformer.prefix_encoder.embedding.weight",
            "    transformer.output_layer.weight is [31, 16], the network needs [32, 16]",
            "    transformer.output_layer.weight is int8, not one of float32, float16, bfloat16",
        ]
        assert "config.json" in caught.value.hint

    def test_adapters_must_be_merged_first(self, torch: Any, tmp_path: Path) -> None:
        state = official(torch, "float16")
        layer = "transformer.encoder.layers.1.self_attention.query_key_value"
        state[f"{layer}.mindpet_delta_lora_a"] = torch.zeros(8, 16)
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"unexpected .*lora_a") as caught:
            select(find_source(tmp_path / "a.pth"), CONFIG)
        assert "merge-ckpt --lora_alpha" in caught.value.hint

    def test_one_weight_under_both_names(self, torch: Any, tmp_path: Path) -> None:
        state = official(torch, "float16")
        state["transformer.embedding.embedding_table"] = state[TABLE]
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"embedding_table are the same weight"):
            select(find_source(tmp_path / "a.pth"), CONFIG)

    def test_shards_that_do_not_hold_what_their_index_says(
        self, torch: Any, tmp_path: Path
    ) -> None:
        state = official(torch, "float16")
        index = save_shards(tmp_path / "in", state, "safetensors", save_safetensors)
        content = json.loads(index.read_text())
        content["weight_map"]["other"] = "part-2.safetensors"
        del content["weight_map"][TABLE]
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError) as caught:
            find_source(index)
        assert f"part-1.safetensors also has {TABLE}" in caught.value.message
        assert "part-2.safetensors lacks other" in caught.value.message
        for name in ("part-1.safetensors", "part-3.safetensors"):
            (index.parent / name).unlink()
        with pytest.raises(ConfigError, match=r"not there: part-1\.safe\w+, part-3\.safe\w+"):
            find_source(index)

    @pytest.mark.parametrize("place", ["../a.bin", "/a.bin", "a.txt", 3])
    def test_an_index_stays_in_its_folder(self, tmp_path: Path, place: object) -> None:
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": {"w": place}}))
        with pytest.raises(CheckpointError, match="the files beside it"):
            find_source(tmp_path)

    def test_several_files_and_no_index(self, tmp_path: Path) -> None:
        for name in ("a.ckpt", "b.pth"):
            (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=r"several: a\.ckpt, b\.pth"):
            find_source(tmp_path)

    def test_another_architecture(self, tmp_path: Path) -> None:
        file = tmp_path / "config.json"
        file.write_text('{"model_type": "glm", "num_layers": 2}')
        with pytest.raises(ConfigError, match="its model_type is 'glm'"):
            read_config(file)
        file.write_text('{"model_type": "chatglm", "rope_ratio": 50}')
        with pytest.raises(ConfigError, match="rope_ratio 50"):
            read_config(file)
        file.write_text('{"model_type": "chatglm", "num_layers": "28"}')
        with pytest.raises(ConfigError, match="num_layers is '28'"):
            read_config(file)
        file.write_text(config_text(CONFIG, "float16"))
        assert weight_shapes(read_config(file)) == weight_shapes(CONFIG)


def test_a_folder_that_cannot_be_finished_is_left_as_it_was(torch: Any, tmp_path: Path) -> None:
    state = official(torch, "float32")
    state["transformer.output_layer.weight"][-1, -1] = 1e6  # the last one to be written
    torch.save(state, tmp_path / "a.pth")
    weights, folder = select(find_source(tmp_path / "a.pth"), CONFIG, "float16"), tmp_path / "hf"
    with pytest.raises(CheckpointError, match="has the value 1e\\+06, which float16 cannot hold"):
        convert(weights, folder, "hf", max_shard=500)
    assert list(folder.iterdir()) == []
    convert(select(find_source(tmp_path / "a.pth"), CONFIG, "bfloat16"), folder, "hf", 500)
    assert len(list(folder.iterdir())) > 3


class TestCkpt:
    def test_every_cut_is_an_error(self, tmp_path: Path) -> None:
        whole = tmp_path / "a.ckpt"
        write(
            whole, {"one": ("float32", (2, 3)), "two": ("float16", ()), "three": ("float32", (4,))}
        )
        data = whole.read_bytes()
        borders = set()
        for size in range(len(data)):
            (tmp_path / "b.ckpt").write_bytes(data[:size])
            try:
                found = find_source(tmp_path / "b.ckpt").tensors
            except CheckpointError:
                continue
            borders.add(size)
            assert list(found) == ["one", "two", "three"][: len(found)]
        assert len(borders) == 2  # Between records a file cannot be told from a shorter one.

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "any.ckpt"
        file.write_bytes(data)
        with contextlib.suppress(CheckpointError):
            find_source(file)

    def test_a_long_tensor_is_cut_into_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ckpt, "SLICE", 16)
        file = tmp_path / "a.ckpt"
        write(file, {"long": ("float32", (5, 2)), "short": ("float16", (3,))})
        found = find_source(file).tensors
        assert [length for _, length in found["long"].segments] == [16, 16, 8]
        assert b"".join(found["long"].blocks()) == bytes(range(40))

    @given(st.lists(st.binary(max_size=9)), st.lists(st.integers(0, 20)))
    def test_regrouping_keeps_every_byte(self, blocks: list[bytes], sizes: list[int]) -> None:
        data = b"".join(blocks)
        cuts, rest = [], len(data)
        for size in sizes:
            cuts.append(min(size, rest))
            rest -= cuts[-1]
        runs = [b"".join(run) for run in regroup(blocks, [*cuts, rest])]
        assert [len(run) for run in runs] == [*cuts, rest]
        assert b"".join(runs) == data


def write(file: Path, tensors: Dict[str, Tuple[str, Tuple[int, ...]]]) -> None:
    """A ``.ckpt`` with tensors whose bytes count from 0."""
    raw = file.with_suffix(".raw")
    raw.write_bytes(bytes(range(200)))
    size = {"float32": 4, "float16": 2}
    stored = [
        StoredTensor(name, dtype, shape, raw, ((0, size[dtype] * int(np.prod(shape))),))
        for name, (dtype, shape) in tensors.items()
    ]
    with file.open("wb") as out:
        ckpt.write_ckpt(out, stored)


class TestSafetensors:
    def file(self, tmp_path: Path, header: object, content: bytes = b"") -> Path:
        text = json.dumps(header).encode() if not isinstance(header, bytes) else header
        file = tmp_path / "a.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text + content)
        return file

    @pytest.mark.parametrize(
        ("header", "said"),
        [
            (b"{", "its header is not JSON"),
            ([], "its header is not a JSON object"),
            ({"w": 1}, "the entry of w is not an object"),
            ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, r"has 4 bytes"),
            ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "no list of numbers"),
            ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "data_offsets"),
            ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "is cut off: w ends"),
        ],
    )
    def test_a_damaged_file(self, tmp_path: Path, header: object, said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            find_source(self.file(tmp_path, header, bytes(8)))

    def test_every_cut_is_an_error(self, torch: Any, tmp_path: Path) -> None:
        save_safetensors(
            {"w": torch.ones(3), "v": torch.ones(2).half()}, tmp_path / "w.safetensors"
        )
        data = (tmp_path / "w.safetensors").read_bytes()
        for size in range(len(data)):
            (tmp_path / "cut.safetensors").write_bytes(data[:size])
            with pytest.raises(CheckpointError):
                find_source(tmp_path / "cut.safetensors")


class TestTarget:
    @pytest.fixture
    def source(self, torch: Any, tmp_path: Path) -> Source:
        torch.save(official(torch, "float16"), tmp_path / "a.pth")
        return find_source(tmp_path / "a.pth")

    def test_nothing_is_overwritten(self, source: Source, tmp_path: Path) -> None:
        weights = select(source, CONFIG)
        (tmp_path / "b.ckpt").write_text("mine")
        with pytest.raises(UsageError, match=r"b\.ckpt is there already"):
            convert(weights, tmp_path / "b.ckpt", "ckpt", 10**9)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "model.safetensors").write_text("mine")
        with pytest.raises(UsageError, match=r"has weights already: model\.safetensors"):
            convert(weights, tmp_path / "folder", "hf", 10**9)

    def test_a_folder_with_other_files_keeps_them(self, source: Source, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "config.json").write_text("mine")
        convert(select(source, CONFIG), tmp_path / "folder", "hf", 1000)
        assert (tmp_path / "folder" / "config.json").read_text() == "mine"
        index = json.loads((tmp_path / "folder" / "model.safetensors.index.json").read_text())
        files = set(index["weight_map"].values())
        assert {*files, "config.json", "model.safetensors.index.json"} == set(
            os.listdir(tmp_path / "folder")
        )
        assert len(files) > 2

    @pytest.mark.parametrize(("target", "kind"), [("b.ckpt", "ckpt"), ("folder", "hf")])
    def test_nothing_half_written_is_left(
        self, source: Source, tmp_path: Path, target: str, kind: str
    ) -> None:
        def fail(done: int, total: int, name: str) -> None:
            if done > total / 2:
                raise OSError(28, "No space left on device")

        with pytest.raises(Glm2Error, match="cannot be written: No space left") as caught:
            convert(select(source, CONFIG), tmp_path / target, kind, 10**9, fail)
        assert caught.value.exit_status == 1
        assert not [file for file in tmp_path.rglob("*") if "part" in file.name]
        assert not list(tmp_path.rglob("*.ckpt")) + list(tmp_path.rglob("*.safetensors"))

    @pytest.mark.parametrize(
        ("text", "size"),
        [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2 << 30), ("1 KB", 1000), ("12", 12)],
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert size_of(text) == size

    @pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5TB", "1.5GB", "GB5"])
    def test_no_sizes(self, text: str) -> None:
        with pytest.raises(UsageError, match="is no size"):
            size_of(text)


# Many layers, so that all of them together are far above the bound.
LARGE = type(CONFIG)(
    num_layers=32,
    hidden_size=1024,
    ffn_hidden_size=2816,
    kv_channels=64,
    num_attention_heads=16,
    padded_vocab_size=8192,
)
_MEASURED = """
import sys
from glm2.__main__ import main
assert main(sys.argv[1:]) == 0
assert not {"mindspore", "torch"} & set(sys.modules)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
def test_peak_memory_is_under_twice_the_largest_tensor_and_300_mb(
    torch: Any, tmp_path: Path
) -> None:
    """Shards to .ckpt and back in another type; all that is resident counts."""

    def peak(*words: str) -> int:
        command = [sys.executable, "-c", _MEASURED, "convert", *words]
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, env=environ, check=True
        )
        return int(done.stdout.split()[-1]) * 1024

    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    state = {
        name.replace("embedding_table", "word_embeddings.weight"): torch.zeros(shape).half()
        for name, shape in weight_shapes(LARGE).items()
    }
    save_shards(tmp_path / "in", state, "bin", torch.save, LARGE)
    largest = max(tensor.nbytes for tensor in state.values())
    bound = 2 * largest + 300 * 10**6
    assert sum(tensor.nbytes for tensor in state.values()) > 2 * bound
    assert peak("--from", "in", "--to", "a.ckpt") < bound
    back = ("--from", "a.ckpt", "--to", "b", "--config", "in/config.json", "--dtype", "bfloat16")
    assert peak(*back) < bound
