"""Evaluation: answers to all prompts of a data set, scored with ROUGE and BLEU-4."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from glm2.answers import AnswerFile
from glm2.data import Row, encode_prompt
from glm2.generate import Generator
from glm2.metrics import say
from glm2.model import Glm2
from glm2.parallel import Layout, sum_over_ranks, texts_of_ranks
from glm2.sampling import GREEDY, Sampling
from glm2.settings import Dataset
from glm2.tokenizer import Tokenizer

METRICS = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


@dataclass(frozen=True)
class Scored:
    """One row with the model's answer and its scores, each 0 to 100."""

    row: int
    content: str
    summary: str
    prediction: str
    scores: Dict[str, float]


def evaluate(
    model: Glm2,
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    dataset: Dataset,
    layout: Layout,
    *,
    sampling: Sampling = GREEDY,
    kept: Optional[AnswerFile] = None,
) -> List[Scored]:
    """Answer and score this rank's rows: every n-th of them, n the data-parallel ranks.

    Rows that ``kept`` has an answer to are not asked again; new answers are added to it.
    """
    mine = range(layout.data_rank, len(rows), layout.data_parallel)
    limit = min(dataset.max_source_length, model.config.seq_length - 1)
    prompts = {i: encode_prompt(rows[i].content, tokenizer, limit) for i in mine}
    texts = kept.open() if kept and prompts else {}
    if kept and layout.model_parallel > 1:
        texts = _agreed(texts, layout)
    if not prompts:
        return []
    texts = {i: text for i, text in texts.items() if i in prompts}
    if texts:
        say(f"eval goes on: {len(texts)} of {len(mine)} rows were answered before")
    width = max(map(len, prompts.values()))
    generator = Generator(
        model,
        batch=min(dataset.batch_size, len(prompts)),
        width=width,
        capacity=width + dataset.max_target_length,
        use_past=model.config.use_past,
    )
    left = [i for i in mine if i not in texts]
    begun = time.monotonic()
    for first in range(0, len(left), generator.batch):
        numbers = left[first : first + generator.batch]
        found = generator.generate([prompts[i] for i in numbers], sampling, draws=numbers)
        answers = dict(zip(numbers, map(tokenizer.decode, found)))
        texts.update(answers)
        if kept:
            kept.add(answers)
        say(f"eval {len(texts)}/{len(mine)} rows  {time.monotonic() - begun:.1f} s")
    return [
        Scored(i, rows[i].content, rows[i].summary, texts[i], score(texts[i], rows[i].summary))
        for i in mine
    ]


def gathered(scored: Sequence[Scored], layout: Layout) -> List[Scored]:
    """The rows of all ranks in their order. All ranks must call this together."""
    if layout.world_size == 1:
        return list(scored)
    mine = [] if layout.model_rank else [asdict(item) for item in scored]
    shares = map(json.loads, texts_of_ranks(layout, json.dumps(mine, ensure_ascii=False)))
    every = [Scored(**item) for share in shares for item in share]
    return sorted(every, key=lambda item: item.row)


def summarise(scored: Sequence[Scored], layout: Layout) -> Dict[str, float]:
    """Mean scores over the rows of all ranks, their number, and how many answers were blank."""
    sums = [sum(item.scores[name] for item in scored) for name in METRICS]
    sums += [float(len(scored)), float(sum(not item.prediction.strip() for item in scored))]
    # Ranks that share the layers have the same rows.
    total = sum_over_ranks(layout, np.array(sums, np.float32)) / layout.model_parallel
    rows = max(float(total[-2]), 1.0)
    result = {name: round(float(value) / rows, 4) for name, value in zip(METRICS, total)}
    return {**result, "rows": int(total[-2]), "blank": int(total[-1])}


def write_report(folder: Path, result: Dict[str, float], scored: List[Scored]) -> Path:
    """``eval_rank_0.json``: the result and the answers of all ranks, which rank 0 writes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "eval_rank_0.json"
    report = {"schema": 1, "result": result, "rows": [asdict(item) for item in scored]}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)
    return file


def table(result: Dict[str, float]) -> str:
    """The result as a small table for people."""
    head = "  ".join(f"{name:>8}" for name in (*METRICS, "rows", "blank"))
    cells = [f"{result[name]:8.2f}" for name in METRICS]
    return head + "\n" + "  ".join([*cells, f"{result['rows']:8d}", f"{result['blank']:8d}"])


def _agreed(texts: Dict[int, str], layout: Layout) -> Dict[int, str]:
    """Of answers that ranks kept, those that all which share the layers have: they must ask for
    the same rows."""
    first = layout.data_rank * layout.model_parallel
    kept = texts_of_ranks(layout, json.dumps(list(texts)))[first : first + layout.model_parallel]
    common = set.intersection(*(set(json.loads(rows)) for rows in kept))
    return {row: text for row, text in texts.items() if row in common}


def score(prediction: str, reference: str) -> Dict[str, float]:
    """ROUGE-1/2/L (F) over words and BLEU-4 over characters, each 0 to 100.

    As ChatGLM2's own evaluation does: words by jieba, rouge-chinese, smoothing method 3.
    A blank answer scores 0.
    """
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.WARNING)
    if not prediction.strip() or not reference.strip():
        return dict.fromkeys(METRICS, 0.0)
    words = [" ".join(jieba.cut(text)) for text in (prediction, reference)]
    rouge = Rouge().get_scores(words[0], words[1])[0]
    scores = {name: round(100.0 * rouge[name]["f"], 4) for name in METRICS[:3]}
    bleu = sentence_bleu(
        [list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3
    )
    return {**scores, "bleu-4": round(100.0 * float(bleu), 4)}
