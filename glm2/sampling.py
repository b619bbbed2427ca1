"""How the next token is chosen from its logits. Needs no MindSpore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glm2.config import ModelConfig
from glm2.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits."""

    do_sample: bool = False
    """False: the most probable token."""
    temperature: float = 1.0
    top_k: int = 0
    """Only the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens already used are divided (if positive) or multiplied by this."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"sampling needs temperature > 0, top_k ≥ 0 and 0 < top_p ≤ 1, not {self}"
            )
        if self.repetition_penalty <= 0:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; above 0")

    @property
    def greedy(self) -> bool:
        """Whether it is the most probable token, and nothing before it changes that."""
        drawn = self.do_sample and self.top_k != 1
        return not drawn and self.repetition_penalty == 1.0

    @classmethod
    def of(cls, config: ModelConfig, seed: int) -> Sampling:
        """The choice that a model configuration asks for."""
        return cls(
            config.do_sample,
            config.temperature,
            config.top_k,
            config.top_p,
            config.repetition_penalty,
            seed,
        )


GREEDY = Sampling()


def choose(logits: np.ndarray, sampling: Sampling, draw: np.random.Generator) -> np.ndarray:
    """One token a row from ``logits`` [B, V]: the best, or drawn from the best."""
    if not sampling.do_sample:
        return logits.argmax(-1)
    return np.array([_draw(row.astype(np.float64), sampling, draw) for row in logits])


def penalise(logits: np.ndarray, used: np.ndarray, penalty: float) -> np.ndarray:
    """Make the tokens in ``used`` less likely (CTRL's repetition penalty)."""
    result = logits.copy()
    result[used] = np.where(logits[used] > 0, logits[used] / penalty, logits[used] * penalty)
    return result


def _draw(logits: np.ndarray, sampling: Sampling, draw: np.random.Generator) -> int:
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scaled = logits[order] / sampling.temperature
    odds = np.exp(scaled - scaled[0])
    odds /= odds.sum()
    # The token that reaches top_p is kept, so at least one always is.
    keep = int(np.searchsorted(np.cumsum(odds), sampling.top_p)) + 1
    odds = odds[:keep] / odds[:keep].sum()
    return int(draw.choice(order[:keep], p=odds))
