"""The section ``model`` of the guide's YAML -> ModelConfig."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Dict, Optional, Type, TypeVar

from glm2.adapters import adapted_layers
from glm2.config import LoraConfig, ModelConfig
from glm2.errors import ConfigError
from glm2.yaml_source import Section

ARCHITECTURES = ("ChatGLM2ForConditionalGeneration", "ChatGLM2WithLora")
"""The guide's class names; the second is that of its older LoRA files."""

# Keys of the guide's files that cannot apply: kernels and caches of MindFormers' own, and
# tokens that the tokenizer knows by itself.
_NO_EFFECT = (
    "use_flash_attention", "use_prompt_flash_attention", "use_incre_flash_attention",
    "is_sample_acceleration", "is_dynamic", "block_size", "num_blocks", "offset",
    "pp_interleave_num", "gmask_token_id", "bos_token_id",
)  # fmt: skip

Config = TypeVar("Config", LoraConfig, ModelConfig)


def read_model(top: Section) -> ModelConfig:
    """The model of a run; raises ConfigError with the line of a key that is wrong."""
    model = top.section("model")
    config = model.section("model_config")
    config.ignore(*_NO_EFFECT)
    found = _fill(ModelConfig, config, pet_config=_pet(config))
    try:
        adapted_layers(found)
    except ConfigError as error:
        where = config.source.where(config.name("pet_config.target_modules"))
        raise ConfigError(f"{where}{error.message}", hint=error.hint) from None
    architecture = model.section("arch")
    if architecture.take("type", str, ARCHITECTURES[0]) not in ARCHITECTURES:
        raise architecture.error("type", "is not supported", f"glm2 builds {ARCHITECTURES[0]}")
    architecture.close()
    model.close()
    return found


def _pet(config: Section) -> Optional[LoraConfig]:
    """``pet_config``: None where it is absent or empty."""
    section = config.section("pet_config")
    if not section.left:
        return None
    kind = section.left.get("pet_type", "lora")
    if kind != "lora":
        # Said before its own keys are looked at: those of another method are all unknown.
        raise section.error("pet_type", f"is {kind!r}", "glm2 has LoRA only: set it to lora")
    if "reg_rules" in section.left:  # MindFormers' older name
        section.left.setdefault("target_modules", section.left.pop("reg_rules"))
    return _fill(LoraConfig, section)


def _fill(kind: Type[Config], section: Section, **given: Any) -> Config:
    """A dataclass from the keys of a section; the types are those of its fields."""
    hints = typing.get_type_hints(kind)
    values: Dict[str, Any] = dict(given)
    for field in dataclasses.fields(kind):
        if field.name in given:
            continue
        if section.left.get(field.name, field) is None:  # null: not set
            del section.left[field.name]
        hint = int if hints[field.name] == Optional[int] else hints[field.name]
        values[field.name] = section.take(field.name, hint, field.default)
    section.close()
    try:
        return kind(**values)
    except ConfigError as error:
        name = error.message.partition(": ")[0].partition(" ")[0].rpartition(".")[2]
        key = name if name in hints else ""
        raise ConfigError(
            f"{section.source.where(section.name(key) if key else section.path)}{error.message}",
            hint=error.hint,
        ) from None
