"""Models by name: configurations, tokenizers, and what is said where there are none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

import glm2
from glm2.auto import AutoConfig, AutoTokenizer
from glm2.config import ModelConfig
from glm2.errors import ConfigError, DownloadError, UsageError
from glm2.pipelines import TextGenerationPipeline, pipeline
from glm2.run import Outcome
from glm2.settings import CONFIGS, Settings
from glm2.task import Trainer
from glm2.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[3]


def test_importing_glm2_loads_nothing_heavy() -> None:
    code = (
        "import sys, glm2; from glm2 import AutoConfig, AutoModel, AutoTokenizer, Trainer, "
        "TextStreamer, pipeline, TextGenerationPipeline, ModelConfig; "
        "assert callable(pipeline); sys.exit('mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0


def test_every_public_name_is_there() -> None:
    assert [getattr(glm2, name).__name__ for name in glm2.__all__] == glm2.__all__
    assert set(glm2.__all__) <= set(dir(glm2))
    with pytest.raises(AttributeError, match="no attribute 'AutoProcessor'"):
        _ = glm2.AutoProcessor


class TestConfig:
    def test_the_released_model_is_chatglm2_6b(self) -> None:
        config = AutoConfig.from_pretrained("glm2_6b")
        assert (config.num_layers, config.hidden_size, config.seq_length) == (28, 4096, 2048)
        assert config.checkpoint_name_or_path == "glm2_6b"
        assert config.pet_config is None
        assert AutoConfig.from_pretrained("glm2_6b_lora").pet_config.lora_rank == 8

    def test_keys_may_be_set_until_it_is_settled(self) -> None:
        config = AutoConfig.from_pretrained("tiny_cpu", seq_length=64)
        config.use_past = False
        settled = config.settled()
        assert isinstance(settled, ModelConfig)
        assert (settled.use_past, settled.seq_length, settled.num_layers) == (False, 64, 2)

    def test_a_key_that_does_not_exist_is_refused(self) -> None:
        config = AutoConfig.from_pretrained("tiny_cpu")
        with pytest.raises(ConfigError, match="no key use_pst") as caught:
            config.use_pst = True
        assert caught.value.hint == "did you mean use_past?"
        with pytest.raises(ConfigError, match="no key layers"):
            AutoConfig.from_pretrained("tiny_cpu", layers=1)

    def test_keys_that_contradict_each_other_are_refused(self) -> None:
        config = AutoConfig.from_pretrained("tiny_cpu")
        config.num_attention_heads = 3
        with pytest.raises(ConfigError, match="do not divide"):
            config.settled()

    def test_a_folder_holds_one_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"must hold one configuration .* it holds none"):
            AutoConfig.from_pretrained(str(tmp_path))
        shutil.copy(CONFIGS / "tiny_cpu.yaml", tmp_path)
        assert AutoConfig.from_pretrained(str(tmp_path)).hidden_size == 128

    def test_an_unknown_name_is_told_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match="no configuration glm3") as caught:
            AutoConfig.from_pretrained("glm3")
        assert caught.value.hint.endswith("or one of glm2_6b, glm2_6b_lora")


class TestTokenizer:
    def test_a_file_a_folder_and_a_configuration_name_it(
        self, sample_folder: Path, tokenizer: Tokenizer
    ) -> None:
        ids = tokenizer.encode("黑色")
        for name in (str(sample_folder), str(sample_folder / "tokenizer.model"), "tiny_cpu"):
            assert AutoTokenizer.from_pretrained(name).encode("黑色") == ids

    def test_that_of_a_released_model_is_looked_for_in_the_downloads(
        self, sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("GLM2_DOWNLOAD_URL", raising=False)
        with pytest.raises(DownloadError, match=r"checkpoint_download/glm2/tokenizer\.model"):
            AutoTokenizer.from_pretrained("glm2_6b")
        folder = tmp_path / "checkpoint_download" / "glm2"
        folder.mkdir(parents=True)
        shutil.copy(sample_folder / "tokenizer.model", folder)
        assert AutoTokenizer.from_pretrained("glm2_6b").vocab_size > 0


def test_a_trainer_of_a_released_model_finds_its_tokenizer_as_well(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("checkpoint_download/glm2")
    folder.mkdir(parents=True)
    shutil.copy(sample_folder / "tokenizer.model", folder)
    seen: List[Settings] = []

    def work(settings: Settings, *_: object) -> Outcome:
        seen.append(settings)
        return Outcome(0, {"predictions": ["你好！"]})

    monkeypatch.setattr("glm2.run.work", work)
    Trainer(task="text_generation", model="glm2_6b", train_dataset="t").predict(input_data="你好")
    named = Trainer(model="glm2_6b", overrides=["eval_dataset.tokenizer.vocab_file=own.model"])
    named.predict(input_data="你好")
    for settings, file in zip(seen, (str(folder / "tokenizer.model"), "own.model")):
        assert settings.eval
        assert settings.eval.tokenizer == file


def test_another_task_is_refused() -> None:
    with pytest.raises(UsageError, match="no task 'translation'"):
        pipeline("translation")
    with pytest.raises(UsageError, match="no task 'translation'"):
        Trainer("translation")


def test_a_pipeline_of_a_network_needs_its_tokenizer() -> None:
    with pytest.raises(UsageError, match="needs its tokenizer"):
        TextGenerationPipeline(model=object())  # type: ignore[arg-type]
