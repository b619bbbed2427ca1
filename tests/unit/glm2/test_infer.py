"""``infer`` and ``export`` without MindSpore: what is asked of the graphs, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np
import pytest

from glm2.__main__ import main
from glm2.config import ModelConfig
from glm2.errors import UsageError
from glm2.infer import Exported, typed
from glm2.infer_section import Graphs
from glm2.predict import answers
from glm2.prompts import read_prompts
from glm2.runtimes import find_runtime, graph_file, loader
from glm2.sampling import GREEDY, Sampling
from glm2.settings import Device, load_settings
from glm2.tokenizer import Tokenizer, build_prompt

CONFIG = ModelConfig(
    num_layers=1,
    hidden_size=8,
    ffn_hidden_size=8,
    kv_channels=4,
    num_attention_heads=2,
    multi_query_group_num=1,
    padded_vocab_size=50,
    seq_length=10,
    batch_size=2,
    max_decode_length=9,
)


class Counting:
    """Graphs whose cache is the tokens seen, and whose next token is their sum modulo 50."""

    def __init__(self) -> None:
        self.calls: List[Sequence[np.ndarray]] = []

    def run(self, inputs: Sequence[Any]) -> List[Any]:
        self.calls.append([np.array(value) for value in inputs])
        if inputs[0].ndim == 2:  # Prefill: ids and lengths.
            ids, length = inputs
            seen = np.where(np.arange(ids.shape[1]) < length[:, None], ids, -100)
        else:  # Increment: a token and its column, and the cache.
            token, position, seen = inputs
            seen = seen.copy()
            free = seen[np.arange(len(token)), position] == -100
            assert (free | (position == seen.shape[1] - 1)).all()
            seen[np.arange(len(token)), position] = token
        sums = np.where(seen == -100, 0, seen).sum(1) % 50
        return [np.eye(50, dtype=np.float32)[sums], seen]

    def to_numpy(self, output: Any) -> np.ndarray:
        assert isinstance(output, np.ndarray)
        return output


def expected(prompt: Sequence[int], count: int) -> List[int]:
    seen = list(prompt)
    for _ in range(count):
        seen.append(sum(seen) % 50)
    return seen[len(prompt) :]


@pytest.fixture
def model() -> Exported:
    graph = Counting()
    return Exported(CONFIG, graph, graph)


class TestStream:
    def test_each_row_grows_at_its_own_end(self, model: Exported) -> None:
        found = list(zip(*model.stream([[1, 2, 3], [7]], GREEDY, 5)))
        assert [list(row) for row in found] == [expected([1, 2, 3], 5), expected([7], 5)]

    def test_a_single_prompt_fills_the_batch(self, model: Exported) -> None:
        assert [row for (row,) in model.stream([[4, 4]], GREEDY, 3)] == expected([4, 4], 3)

    def test_a_row_at_its_last_column_leaves_the_others_alone(self, model: Exported) -> None:
        found = list(zip(*model.stream([[1] * 8, [1]], GREEDY, 100)))
        assert list(found[0])[:2] == expected([1] * 8, 2)
        assert list(found[1]) == expected([1], 9)

    def test_shapes_never_change(self, model: Exported) -> None:
        list(model.stream([[1, 2, 3]], GREEDY, 4))
        first, *others = model.prefill.calls  # type: ignore[attr-defined]
        assert [value.shape for value in first] == [(2, 10), (2,)]
        assert {tuple(value.shape for value in call) for call in others} == {((2,), (2,), (2, 10))}
        assert {value.dtype for call in others for value in call[:2]} == {np.dtype(np.int32)}

    def test_draws_depend_on_seed_and_number_only(self, model: Exported) -> None:
        drawn = Sampling(do_sample=True, temperature=5.0, seed=3)
        first, second = zip(*model.stream([[1, 2], [3]], drawn, 6, [7, 8]))
        assert list(model.stream([[3]], drawn, 6, [8])) == [[token] for token in second]
        assert list(model.stream([[1, 2]], drawn, 6, [7])) == [[token] for token in first]
        other = dataclasses.replace(drawn, seed=4)
        assert list(model.stream([[3]], other, 6, [8])) != [[token] for token in second]

    @pytest.mark.parametrize("prompts", [[[1] * 10], [[1], [2], [3]], [], [[]]])
    def test_prompts_that_do_not_fit(self, model: Exported, prompts: List[List[int]]) -> None:
        with pytest.raises(UsageError, match="the graphs take 1 to 2 prompts of 1 to 9 tokens"):
            list(model.stream(prompts, GREEDY, 1))


class TestAnswers:
    def test_answers_end_at_eos_and_keep_their_order(self, tokenizer: Tokenizer) -> None:
        class Fixed:
            """Says 黑 and ends, a step later for each further row."""

            step = 0

            def run(self, inputs: Sequence[Any]) -> List[Any]:
                self.step = 0 if inputs[0].ndim == 2 else self.step + 1
                rows = len(inputs[0])
                logits = np.zeros((rows, tokenizer.vocab_size), np.float32)
                for row in range(rows):
                    logits[row, black if self.step <= row else tokenizer.eos_id] = 1
                return [logits, np.zeros(1)]

            def to_numpy(self, output: Any) -> np.ndarray:
                return output

        (black,) = tokenizer.encode("黑", special=False)[-1:]
        config = dataclasses.replace(
            CONFIG, padded_vocab_size=1024, seq_length=64, max_decode_length=60
        )
        graph = Fixed()
        questions = ["类型#裙", "类型#裤", "类型#上衣"]
        found = answers(Exported(config, graph, graph), tokenizer, questions, GREEDY)
        black_text = tokenizer.decode([black])
        counts = [1, 2, 1]
        assert [(answer.text, answer.tokens) for answer in found] == [
            (q + black_text * n, n) for q, n in zip(questions, counts)
        ]


class TestTyped:
    @pytest.mark.parametrize(
        ("lines", "prompts"),
        [
            ("你好\n\n  \n再见\n", [build_prompt("你好"), build_prompt("再见")]),
            (
                "[Round 1]\n\n问：你好。\n\n答：\n你好\n",
                [build_prompt("你好。"), build_prompt("你好")],
            ),
            ("[Round 1]\\n\\n问：你好\\n\\n答：\n", [build_prompt("你好")]),
            (
                build_prompt("再见", [("你好", "你好！")]) + "\n[Round 1]\n",
                [build_prompt("再见", [("你好", "你好！")]), "[Round 1]"],
            ),
            ("", []),
        ],
    )
    def test_questions_and_whole_prompts_as_the_guide_types_them(
        self, monkeypatch: pytest.MonkeyPatch, lines: str, prompts: List[str]
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert list(typed()) == prompts


class TestPrompts:
    def test_texts_and_files(self, tmp_path: Path) -> None:
        file = tmp_path / "prompts.txt"
        file.write_text("b\\nc\n\nd\n", "utf-8")
        assert read_prompts(["a\\n", str(file)]) == ["a\n", "b\nc", "d"]

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="needs --predict_data"):
            read_prompts([])
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(UsageError, match="holds no text"):
            read_prompts([str(tmp_path / "empty")])


class TestGraphs:
    def test_names(self) -> None:
        graphs = Graphs(Path("a/p.mindir"), Path("b/i.mindir")).below(Path("/out"))
        assert graphs.int8() == Graphs(Path("/out/a/p_int8.mindir"), Path("/out/b/i_int8.mindir"))
        assert graphs.manifest == Path("/out/a/p.json")
        assert graphs.below(Path("/other")) == graphs

    def test_a_large_graph_has_another_name(self, tmp_path: Path) -> None:
        (tmp_path / "p_graph.mindir").touch()
        assert graph_file(tmp_path / "p.mindir") == tmp_path / "p_graph.mindir"

    def test_the_named_runtime_must_be_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for name, said in (("", "MindSpore is not"), ("lite", "mindspore_lite is not")):
            with pytest.raises(UsageError, match=said):
                find_runtime(name)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        assert find_runtime() == "lite"
        assert find_runtime("mindspore") == "mindspore"

    def test_the_guides_lite_ini_is_no_hindrance_without_lite(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert callable(loader("mindspore", Device("CPU"), "lite.ini"))
        assert "lite.ini has no effect: it is for MindSpore Lite" in capsys.readouterr().err


YAML = """\
infer:
  prefill_model_path: out/p.mindir
  increment_model_path: {increment}
  infer_seq_length: {length}
model:
  model_config: {{seq_length: 32}}
"""


class TestCommands:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("GLM2_OUTPUT_DIR", raising=False)
        good = YAML.format(increment="out/i.mindir", length=32)
        (tmp_path / "good.yaml").write_text(good)

    @pytest.mark.parametrize(
        ("words", "status", "said"),
        [
            (("export", "--config", "good.yaml"), 2, "there are no weights to export"),
            (
                ("export", "--config", "run_glm2_6b", "--load_checkpoint", "a.ckpt"),
                3,
                "has no section infer",
            ),
            (("infer",), 2, "which graphs?"),
            (("infer", "--config", "good.yaml"), 3, "there is no out/p.json"),
            (("infer", "--prefill_model_path", "p.mindir"), 2, "belong together"),
        ],
    )
    def test_what_cannot_be_done(
        self, capsys: pytest.CaptureFixture[str], words: Sequence[str], status: int, said: str
    ) -> None:
        assert main(words) == status
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("increment", "length", "said"),
        [
            (
                "out/i.mindir",
                512,
                "infer_seq_length is 512, but model.model_config.seq",
            ),
            ("out/p.mindir", 32, "increment_model_path is also prefill_model_path"),
            ("out/i.ms", 32, "increment_model_path is out/i.ms"),
        ],
    )
    def test_a_wrong_section(
        self, capsys: pytest.CaptureFixture[str], increment: str, length: int, said: str
    ) -> None:
        Path("bad.yaml").write_text(YAML.format(increment=increment, length=length))
        assert main(["export", "--config", "bad.yaml"]) == 3
        assert said in capsys.readouterr().err

    def test_the_guides_other_key_of_the_section_has_no_effect(self) -> None:
        text = Path("good.yaml").read_text().replace("infer:\n", "infer:\n  model_type: mindir\n")
        Path("guide.yaml").write_text(text)
        assert load_settings(Path("guide.yaml")).unused == ("infer.model_type",)

    def test_a_manifest_of_another_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("out").mkdir()
        for manifest in (
            "{",
            "[]",
            "{}",
            '{"model_config": {"new_key": 1}}',
            '{"model_config": {}}',
        ):
            Path("out/p.json").write_text(manifest)
            assert main(["infer", "--config", "good.yaml"]) == 3
            assert "out/p.json is not of this version of glm2" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            (("--seq_length", "512"), "--seq_length is 512, the graphs have 10"),
            (("--is_sample_acceleration", "True"), "has no counterpart here"),
            (("--add_special_tokens", "False"), "always begins with [gMASK] sop"),
        ],
    )
    def test_the_guides_options_are_not_ignored(
        self, capsys: pytest.CaptureFixture[str], option: Sequence[str], said: str
    ) -> None:
        """The guide's command as it is gets as far as the tokenizer."""
        manifest = {"model_config": dataclasses.asdict(CONFIG), "device_target": "CPU"}
        Path("p.json").write_text(json.dumps(manifest))
        guide = (
            "infer", "--device_id", "0", "--model_name", "glm2_6b",
            "--prefill_model_path", "p_graph.mindir", "--increment_model_path", "i_graph.mindir",
            "--config_path", "lite.ini",
        )  # fmt: skip
        same = ("--is_sample_acceleration", "False", "--seq_length", "10",
                "--add_special_tokens", "True")  # fmt: skip
        assert main([*guide, *same]) == 2
        assert "which tokenizer?" in capsys.readouterr().err
        assert main([*guide, *option]) == 2
        assert said in capsys.readouterr().err

    def test_a_tokenizer_must_be_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("out").mkdir()
        config = dataclasses.asdict(dataclasses.replace(CONFIG, padded_vocab_size=1024))
        Path("out/p.json").write_text(json.dumps({"model_config": config, "device_target": "CPU"}))
        assert main(["infer", "--config", "good.yaml"]) == 2
        assert "which tokenizer?" in capsys.readouterr().err
        words = ["infer", "--config", "good.yaml", "--tokenizer", "absent.model"]
        assert main(words) == 3
        assert "there is no tokenizer file absent.model" in capsys.readouterr().err
