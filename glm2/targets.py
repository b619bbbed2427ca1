"""The tokens of a batch that are learned. Nothing here needs MindSpore.

Shapes: B rows, T tokens a row, K tokens a row that can be learned.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glm2.adapters import adapted_layers
from glm2.config import IGNORED_LABEL
from glm2.settings import Settings


class Targets(NamedTuple):
    """What is to be predicted, and from where."""

    places: np.ndarray
    """int32 [B·K]: rows of the tokens [B·T]; each predicts the token behind it."""
    labels: np.ndarray
    """int32 [B·K]: the tokens behind them; IGNORED_LABEL where one does not count."""


def find_targets(labels: np.ndarray, most: int) -> Targets:
    """The learned tokens of ``labels`` [B, T], which are IGNORED_LABEL elsewhere.

    ``most`` is K, how many tokens of a row are learned at most. A row that learns fewer gets places
    that do not count; all places are different. With K = T they are all tokens, in their order.

    >>> find_targets(np.array([[-100, -100, 7, 8, -100]]), most=3)
    Targets(places=array([1, 2, 0], dtype=int32), labels=array([   7,    8, -100], dtype=int32))
    """
    rows, length = labels.shape
    # Token t is predicted at t - 1, so that the first token of an answer, predicted by the last
    # one of the prompt, is learned (as ChatGLM2's reference does); behind the last token is none.
    behind = np.full_like(labels, IGNORED_LABEL)
    behind[:, :-1] = labels[:, 1:]
    if most >= length:
        return Targets(np.arange(rows * length, dtype=np.int32), behind.reshape(-1))
    learned = behind != IGNORED_LABEL
    if learned.sum(1).max() > most:
        raise ValueError(f"a row learns {learned.sum(1).max()} tokens, more than {most}")
    places = np.argsort(~learned, axis=1, kind="stable")[:, :most]  # [B, K], learned ones first
    chosen = np.take_along_axis(behind, places, 1)
    places = places + np.arange(rows)[:, None] * length
    return Targets(places.astype(np.int32).reshape(-1), chosen.reshape(-1))


def targets_in_row(settings: Settings) -> int:
    """K of ``find_targets`` for training: less than T where that spares work.

    It does behind the last attention, if no adapter is there: its dropout numbers the tokens, so
    that each has the same mask whichever rank works on it.
    """
    length, last = settings.model.seq_length, settings.model.num_layers - 1
    behind = (f"layers.{last}.mlp.", "output_layer")
    if settings.train is None or any(
        part in name for name in adapted_layers(settings.model) for part in behind
    ):
        return length
    most = settings.train.most_learned
    return most if most < length - 1 else length
