"""The guide's Trainer: the modes of the command line as methods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from glm2.download import RELEASED, VOCABULARY, obtain
from glm2.errors import Glm2Error
from glm2.pipelines import TASK, require_task


class Trainer:
    """Trains, scores and asks one model.

    >>> trainer = Trainer(task="text_generation", model="glm2_6b",
    ...                   train_dataset="train.json", eval_dataset="dev.json")
    >>> trainer.predict(input_data="你好")                        # doctest: +SKIP
    [{'text_generation_text': ['你好，我是 …']}]

    ``model`` is a released model, whose tokenizer is found as by AutoTokenizer, or the name or
    path of a configuration; the datasets are files or the folders that hold them; ``overrides``
    are keys of the configuration, such as ``["runner_config.epochs=2"]``. As with the command
    line, several ranks are several processes with RANK_ID and RANK_SIZE (``environ``).
    """

    def __init__(
        self,
        task: str = TASK,
        model: str = "glm2_6b",
        train_dataset: Optional[str] = None,
        eval_dataset: Optional[str] = None,
        *,
        output_dir: Optional[str] = None,
        overrides: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        require_task(task)
        self.config = RELEASED.get(model, model)
        self.environ = environ
        self._words: List[str] = []
        for option, value in (
            ("--train_dataset_dir", train_dataset),
            ("--eval_dataset_dir", eval_dataset),
            ("--output_dir", output_dir),
        ):
            if value is not None:
                self._words += [option, str(value)]
        for override in overrides:
            self._words += ["--set", override]
        self._released = model in RELEASED and not any("vocab_file" in key for key in overrides)
        self._trained: Optional[str] = None

    def train(self) -> None:
        """Train on ``train_dataset``; the other methods then take the weights of its end."""
        self._train("train", None)

    def finetune(self, finetune_checkpoint: Optional[str] = None) -> None:
        """Train from released weights, or from those of a file; see ``train``."""
        self._train("finetune", finetune_checkpoint)

    def evaluate(self, eval_checkpoint: Optional[str] = None) -> Dict[str, float]:
        """ROUGE-1/2/L, BLEU-4 (0 to 100), and the number of rows and of blank answers."""
        return self._run("eval", eval_checkpoint or self._trained).result

    def predict(
        self, input_data: Union[str, Sequence[str]], predict_checkpoint: Optional[str] = None
    ) -> List[Dict[str, List[str]]]:
        """Texts, or files with one a line, with their continuations."""
        given = [input_data] if isinstance(input_data, str) else list(input_data)
        words = [word for text in given for word in ("--predict_data", text)]
        outcome = self._run("predict", predict_checkpoint or self._trained, *words)
        return [{"text_generation_text": [text]} for text in outcome.result["predictions"]]

    def _train(self, mode: str, checkpoint: Optional[str]) -> None:
        outcome = self._run(mode, checkpoint)
        if outcome.status:
            raise Glm2Error(
                f"training ended early, with status {outcome.status}; its checkpoint is saved",
                hint="go on from it with overrides=['resume_training=True']",
            )
        self._trained = outcome.result["checkpoint"]

    def _run(self, mode: str, checkpoint: Optional[str], *more: str) -> Any:
        from glm2.__main__ import work_parser
        from glm2.run import resolve, work

        words = ["--config", self.config, "--run_mode", mode, *self._words, *more]
        if self._released:
            file = obtain(VOCABULARY, environ=self.environ)
            for name in ("train_dataset", "eval_dataset"):
                words += ["--set", f"{name}.tokenizer.vocab_file={file}"]
        if checkpoint is not None:
            words += ["--load_checkpoint", str(Path(checkpoint))]
        options = work_parser().parse_args(words)
        return work(resolve(options, self.environ), options.predict_data or [], self.environ)
