"""The model's configuration: the keys of ``model.model_config`` in the guide's YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from glm2.errors import ConfigError

FLOAT_TYPES = ("float32", "float16", "bfloat16")

IGNORED_LABEL = -100
"""Label of the tokens of a training row that are not learned: prompt and padding."""


@dataclass(frozen=True)
class LoraConfig:
    """``model_config.pet_config``: adapters that are trained in place of the weights.

    The output of an adapted linear layer is ``W x + lora_alpha / lora_rank · B A dropout(x)``.
    """

    pet_type: str = "lora"
    """Nothing else is accepted."""
    lora_rank: int = 8
    """Rows of A and columns of B."""
    lora_alpha: float = 32.0
    """The adapters' part is multiplied by ``lora_alpha / lora_rank``."""
    lora_dropout: float = 0.1
    """Share of the adapters' input that is left out at random while training."""
    target_modules: str = ".*query_key_value*"
    """Regular expression for the names of the linear layers that are adapted."""

    def __post_init__(self) -> None:
        if self.pet_type != "lora":
            raise ConfigError(
                f"pet_config.pet_type is {self.pet_type!r}",
                hint="glm2 has LoRA only: set it to lora",
            )
        if self.lora_rank < 1:
            raise ConfigError(f"pet_config.lora_rank is {self.lora_rank}; at least 1")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError(
                f"pet_config.lora_dropout is {self.lora_dropout}; at least 0 and below 1"
            )
        try:
            re.compile(self.target_modules)
        except re.error as error:
            raise ConfigError(
                f"pet_config.target_modules is no regular expression: {error}",
                hint="for example '.*query_key_value*'",
            ) from error

    @property
    def scale(self) -> float:
        """What the adapters' part is multiplied by."""
        return self.lora_alpha / self.lora_rank

    def adapts(self, name: str) -> bool:
        """Whether the linear layer of this full name has adapters."""
        return re.match(self.target_modules, name) is not None


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of one GLM2 network; the defaults are ChatGLM2-6B.

    The names are those of the guide's ``model_config``. Raises ConfigError when the values
    contradict each other or name a network that is not ChatGLM2's.
    """

    num_layers: int = 28
    """Transformer layers."""
    hidden_size: int = 4096
    """Width of the residual stream."""
    ffn_hidden_size: int = 13696
    """Width inside the feed-forward block, after the gate."""
    kv_channels: int = 128
    """Width of one attention head; the rotary embedding turns its first half."""
    num_attention_heads: int = 32
    """Query heads."""
    multi_query_attention: bool = True
    """Share keys and values between query heads; False: one group a head."""
    multi_query_group_num: int = 2
    """Key/value groups; each serves ``num_attention_heads / multi_query_group_num`` heads."""
    padded_vocab_size: int = 65024
    """Rows of the embedding and of the output layer; at least the tokenizer's vocabulary."""
    seq_length: int = 2048
    """Tokens in a training row, and the most that prompt and answer may have together."""
    layernorm_epsilon: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    add_qkv_bias: bool = True
    """Bias of the fused query/key/value projection."""
    post_layer_norm: bool = True
    """Normalise once more behind the last layer."""
    apply_query_key_layer_scaling: bool = True
    """Divide scores by the layer number and multiply back in float32: range for float16."""
    attention_softmax_in_fp32: bool = True
    """The softmax of the attention always runs in float32 here; False is refused."""

    rmsnorm: bool = True
    """RMSNorm, not LayerNorm; False is refused."""
    add_bias_linear: bool = False
    """Biases of the other linear layers; True is refused: ChatGLM2 has none."""
    apply_residual_connection_post_layernorm: bool = False
    """True is refused: ChatGLM2 adds the residual before the norm."""
    fp32_residual_connection: bool = False
    """True is refused: the residual stream has the compute type."""
    hidden_dropout: float = 0.0
    """Anything but 0 is refused: ChatGLM2 is trained without dropout."""
    attention_dropout: float = 0.0
    """Anything but 0 is refused, as above."""
    quantization_bit: int = 0
    """Anything but 0 is refused: the weights are not quantised."""
    pre_seq_len: Optional[int] = None
    """Prefix tuning; anything but None and 0 is refused."""
    prefix_projection: bool = False
    """Prefix tuning; True is refused."""
    bias_dropout_fusion: bool = True
    """A kernel of the original for dropout; there is none to fuse here, as dropout is 0."""
    rope_ratio: float = 1.0
    """Anything but 1 is refused: it stretches the rotary base of longer-context relatives."""
    pet_config: Optional[LoraConfig] = None
    """LoRA; None: all weights are trained."""

    param_init_type: str = "float32"
    """Type of the weights: float32, float16 or bfloat16. The optimizer's state is float32."""
    compute_dtype: str = "float32"
    """Type of the matrix products. float16 brings the dynamic loss scale with it."""
    layernorm_compute_type: str = "float32"
    """The norms always run in float32 here; another value is refused."""
    softmax_compute_type: str = "float32"
    """The softmax always runs in float32 here; another value is refused."""
    initializer_range: float = 0.02
    """Standard deviation of freshly initialised weights (no checkpoint loaded)."""

    batch_size: int = 1
    """Prompts answered side by side by ``predict``."""
    use_past: bool = True
    """Generate with a key/value cache; False recomputes the whole sequence for each token."""
    max_decode_length: int = 256
    """The most tokens that prompt and answer have together in ``predict``."""
    do_sample: bool = False
    """Draw each token by its probability; False takes the most probable one."""
    top_k: int = 1
    """Draw among the k most probable tokens; 0: no limit."""
    top_p: float = 1.0
    """Draw among the most probable tokens that together reach this probability."""
    temperature: float = 1.0
    """Divides the logits before a draw."""
    repetition_penalty: float = 1.0
    """Makes tokens that were already used less likely when above 1."""
    eos_token_id: int = 2
    """Ends an answer."""
    pad_token_id: int = 0
    """Fills a batch up."""
    checkpoint_name_or_path: str = ""
    """Weights to start from when ``load_checkpoint`` is empty."""
    type: str = "ChatGLM2Config"
    """The guide's class name; nothing else is accepted."""

    def __post_init__(self) -> None:
        _require_chatglm2(self)
        _require_ranges(self)
        if self.num_attention_heads % self.groups:
            raise ConfigError(
                f"model_config: {self.num_attention_heads} attention heads do not divide into "
                f"{self.groups} key/value groups",
                hint="make num_attention_heads a multiple of multi_query_group_num",
            )
        if self.kv_channels % 4:
            raise ConfigError(
                f"model_config.kv_channels is {self.kv_channels}; the rotary embedding turns "
                "pairs in its first half, so it must be a multiple of 4"
            )
        for name in ("param_init_type", "compute_dtype"):
            if getattr(self, name) not in FLOAT_TYPES:
                raise ConfigError(
                    f"model_config.{name} is {getattr(self, name)!r}",
                    hint=f"use one of {', '.join(FLOAT_TYPES)}",
                )

    @property
    def groups(self) -> int:
        """Key/value groups in use: one a head without multi-query attention."""
        return (
            self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads
        )

    @property
    def query_size(self) -> int:
        """Width of all query heads together; equal to hidden_size in ChatGLM2-6B."""
        return self.num_attention_heads * self.kv_channels

    @property
    def kv_size(self) -> int:
        """Width of all key groups together (and of all value groups)."""
        return self.groups * self.kv_channels


_LEAST = {
    "num_layers": 1, "hidden_size": 1, "ffn_hidden_size": 1, "kv_channels": 1,
    "num_attention_heads": 1, "multi_query_group_num": 1, "padded_vocab_size": 1, "seq_length": 4,
    "batch_size": 1, "max_decode_length": 1, "top_k": 0, "initializer_range": 0, "pad_token_id": 0,
}  # fmt: skip
_ABOVE_0 = ("layernorm_epsilon", "temperature", "top_p", "repetition_penalty")


def _require_ranges(config: ModelConfig) -> None:
    for name, least in _LEAST.items():
        if not getattr(config, name) >= least:
            raise ConfigError(f"model_config.{name} is {getattr(config, name)}; at least {least}")
    for name in _ABOVE_0:
        if not getattr(config, name) > 0:
            raise ConfigError(f"model_config.{name} is {getattr(config, name)}; above 0")
    if config.top_p > 1:
        raise ConfigError(f"model_config.top_p is {config.top_p}; at most 1")
    if config.pad_token_id >= config.padded_vocab_size:
        raise ConfigError(
            f"model_config.pad_token_id is {config.pad_token_id}; below padded_vocab_size, "
            f"{config.padded_vocab_size}"
        )


def _require_chatglm2(config: ModelConfig) -> None:
    """Refuse values that ask for another network: none may be ignored in silence."""
    needed = {
        "type": "ChatGLM2Config",
        "rmsnorm": True,
        "attention_softmax_in_fp32": True,
        "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "quantization_bit": 0,
        "prefix_projection": False,
        "rope_ratio": 1.0,
        "layernorm_compute_type": "float32",
        "softmax_compute_type": "float32",
    }
    if config.pre_seq_len:  # the guide's files write None or 0
        raise ConfigError(
            f"model_config.pre_seq_len: {config.pre_seq_len} is not supported",
            hint="glm2 has no prefix tuning: set it to None; pet_config has LoRA",
        )
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"model_config.{name}: {getattr(config, name)!r} is not supported",
                hint=f"glm2 is ChatGLM2's network only: set it to {value!r}, or leave it out",
            )
