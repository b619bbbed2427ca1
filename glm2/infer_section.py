"""The section ``infer`` of the guide's YAML: the two graphs of an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from glm2.config import ModelConfig
from glm2.yaml_source import Section


@dataclass(frozen=True)
class Graphs:
    """Where ``export`` writes its two graphs, and ``infer`` finds them."""

    prefill: Path
    """``prefill_model_path``: reads a prompt. The manifest stands beside it."""
    increment: Path
    """``increment_model_path``: reads one more token."""

    @property
    def manifest(self) -> Path:
        """What ``infer`` needs to know of the two: ``{prefill}.json``."""
        return self.prefill.with_suffix(".json")

    def below(self, folder: Path) -> Graphs:
        """The same with relative paths counted from ``folder``."""
        return Graphs(folder / self.prefill, folder / self.increment)

    def int8(self) -> Graphs:
        """Where the graphs with int8 weights go: ``_int8`` behind the names."""
        return Graphs(
            *(p.with_name(f"{p.stem}_int8{p.suffix}") for p in (self.prefill, self.increment))
        )


def read_infer(top: Section, model: ModelConfig) -> Optional[Graphs]:
    """The graphs that a configuration names; None where it has no section ``infer``.

    ConfigError unless ``infer_seq_length`` is the model's ``seq_length``, as the guide asks.
    """
    if "infer" not in top.left:
        top.known.append("infer")
        return None
    section = top.section("infer")
    graphs = Graphs(
        Path(section.take("prefill_model_path", str)),
        Path(section.take("increment_model_path", str)),
    )
    if graphs.prefill == graphs.increment:
        raise section.error("increment_model_path", "is also prefill_model_path")
    for key, path in (
        ("prefill_model_path", graphs.prefill),
        ("increment_model_path", graphs.increment),
    ):
        if path.suffix != ".mindir":
            raise section.error(key, f"is {path}", "it must end in .mindir")
    length = section.take("infer_seq_length", int, model.seq_length)
    if length != model.seq_length:
        raise section.error(
            "infer_seq_length",
            f"is {length}, but model.model_config.seq_length is {model.seq_length}",
            "make them equal",
        )
    section.ignore("model_type")
    section.close()
    return graphs
