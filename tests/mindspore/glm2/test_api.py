"""The guide's interface in Python, as a user's script: from training to answers."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import mindspore as ms
import pytest

from glm2 import AutoConfig, AutoModel, AutoTokenizer, TextGenerationPipeline, pipeline
from glm2.errors import UsageError
from glm2.model import Glm2
from glm2.settings import CONFIGS
from glm2.streaming import TextStreamer
from glm2.tokenizer import Tokenizer
from tests.mindspore.glm2.test_answers import CHECKPOINT, QUESTION
from tests.mindspore.glm2.worker import Workers

SCRIPT = """
import mindspore
mindspore.ops.add(mindspore.Tensor(1.0), 1).asnumpy()  # it runs before us, as in a notebook
from glm2 import Trainer
trainer = Trainer(task="text_generation", model="tiny_cpu", train_dataset="{data}",
                  eval_dataset="dev.json", output_dir="output",
                  overrides=["runner_config.epochs=1", "lr_schedule.warmup_steps=2"])
trainer.finetune()
print("SCORES", trainer.evaluate())
print("TEXTS", trainer.predict(input_data=["{prompt}", "类型#裤"]))
"""


@pytest.fixture(scope="module")
def folder(alone: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as a folder: configuration, weights and tokenizer."""
    made = tmp_path_factory.mktemp("model")
    shutil.copy(CONFIGS / "tiny_cpu.yaml", made)
    shutil.copy(alone / CHECKPOINT, made / "weights.ckpt")
    shutil.copy(data / "tokenizer.model", made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Glm2:
    return AutoModel.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(str(folder))


def prompt(tokenizer: Tokenizer) -> List[int]:
    ids: List[int] = tokenizer(tokenizer.build_prompt(QUESTION))["input_ids"]
    return ids


def test_generate_gives_prompt_and_answer(model: Glm2, tokenizer: Tokenizer) -> None:
    ids = prompt(tokenizer)
    (row,) = model.generate(ids, max_length=48)
    assert row[: len(ids)] == ids
    assert len(ids) < len(row) <= 48
    (short,) = model.generate(ids, max_new_tokens=3)
    assert short == row[: len(ids) + 3]
    (text,) = tokenizer.decode([row])
    assert text.startswith(tokenizer.build_prompt(QUESTION))


def test_a_padded_batch_is_answered_as_its_rows(model: Glm2, tokenizer: Tokenizer) -> None:
    texts = [tokenizer.build_prompt(QUESTION), tokenizer.build_prompt("类型#裤*裤型#阔腿裤")]
    padded = tokenizer(texts, padding=True)["input_ids"]
    alone = [model.generate(tokenizer(text)["input_ids"], max_length=60)[0] for text in texts]
    assert model.generate(padded, max_length=60) == alone


def test_use_past_changes_nothing_but_time(folder: Path, model: Glm2, tokenizer: Tokenizer) -> None:
    config = AutoConfig.from_pretrained(str(folder))
    config.use_past = False
    config.checkpoint_name_or_path = str(folder / "weights.ckpt")
    whole = AutoModel.from_config(config)
    ids = prompt(tokenizer)
    assert whole.generate(ids, max_length=40) == model.generate(ids, max_length=40)


def test_a_seed_repeats_a_drawn_answer(model: Glm2, tokenizer: Tokenizer) -> None:
    ids = prompt(tokenizer)
    choice = {"do_sample": True, "top_k": 50, "temperature": 3.0, "max_new_tokens": 20}
    first = model.generate(ids, seed=1, **choice)
    assert model.generate(ids, seed=1, **choice) == first
    others = [model.generate(ids, **choice) for _ in range(3)]
    assert any(other != first for other in others), "without a seed each call draws anew"


def test_an_answer_is_shown_as_it_grows(model: Glm2, tokenizer: Tokenizer) -> None:
    ids, shown = prompt(tokenizer), []  # type: ignore[var-annotated]
    (row,) = model.generate(ids, max_length=48, streamer=TextStreamer(tokenizer, shown.append))
    assert "".join(shown) == tokenizer.decode(row[len(ids) :]) + "\n"
    assert len([piece for piece in shown if piece]) > 2


def test_pipelines_answer_texts(folder: Path, model: Glm2, tokenizer: Tokenizer) -> None:
    text = tokenizer.build_prompt(QUESTION)
    one = TextGenerationPipeline(model=str(folder), max_length=48)
    found = one(text)
    assert found == [
        {"text_generation_text": tokenizer.decode(model.generate(prompt(tokenizer), max_length=48))}
    ]
    two = pipeline("text_generation", model, tokenizer, batch_size=2)
    assert two([text, "类型", text], max_length=48)[::2] == found * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": 98}, "max_length is 98, the model's seq_length 97"),
        ({"max_length": 5}, "prompt and answer have together at most 5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; at least 1"),
        ({"top_p": 1.5}, "0 < top_p"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: Glm2, tokenizer: Tokenizer, options: dict, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        model.generate(prompt(tokenizer), **options)


@pytest.mark.parametrize("token", [1024, -1])
def test_a_token_that_the_model_does_not_have_is_refused_and_does_no_harm(
    model: Glm2, tokenizer: Tokenizer, token: int
) -> None:
    with pytest.raises(UsageError, match=f"{token} is no token: the model has 0 to 1023"):
        model.generate([*prompt(tokenizer), token], max_length=48)
    assert model.generate(prompt(tokenizer), max_length=48)


@pytest.mark.slow
def test_a_trainer_trains_scores_and_answers(workers: Workers, data: Path, tmp_path: Path) -> None:
    rows = (data / "all" / "dev.json").read_text(encoding="utf-8").splitlines()[:4]
    (tmp_path / "dev.json").write_text("\n".join(rows) + "\n", encoding="utf-8")
    script = SCRIPT.format(data=data, prompt="[Round 1]\\\\n\\\\n问：类型#裙\\\\n\\\\n答：")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=workers.environ, capture_output=True,
        text=True, encoding="utf-8", timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in done.stdout.splitlines()[1:]}
    assert ast.literal_eval(said["SCORES"])["rows"] == 4
    texts = ast.literal_eval(said["TEXTS"])
    assert [list(item) for item in texts] == [["text_generation_text"]] * 2
    assert texts[0]["text_generation_text"][0].startswith("[Round 1]\n\n问：类型#裙\n\n答：")


@pytest.mark.parametrize("taken", [False, True], ids=["first", "chosen before"])
def test_a_script_gets_its_memory_planned_as_the_worker_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """Slower by a sixth otherwise; MindSpore refuses what a script has already chosen."""
    asked = []

    def set_memory(**values: str) -> None:
        asked.append(values)
        if taken:
            raise RuntimeError("The 'set_memory' can not be set repeatedly.")

    monkeypatch.setattr(ms.runtime, "set_memory", set_memory)
    AutoModel.from_pretrained(str(folder))
    assert asked == [{"optimize_level": "O1"}]
