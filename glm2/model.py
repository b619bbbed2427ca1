"""The GLM2 network. Parameter names are those of the guide's MindSpore checkpoints.

Shapes: B rows, T tokens a row, S tokens in the cache, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal

from glm2.attention import MASKED, SelfAttention
from glm2.config import IGNORED_LABEL, ModelConfig
from glm2.fused import CrossEntropy, Outer
from glm2.layers import MLP, Linear, RMSNorm, float_type, new_weight, rotary_table, whole_turns


class Glm2(nn.Cell):
    """ChatGLM2 for next-token prediction."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.generators: Dict[int, Any] = {}
        """What ``generate`` keeps between calls: see ``glm2.generate.continue_prompts``."""
        self.cross_entropy: nn.Cell = CrossEntropy()
        """Of ``loss_by``; ranks that share the vocabulary have one of their own."""

    def construct(self, input_ids: Tensor, places: Optional[Tensor] = None) -> Tensor:
        """Logits [B, T, V] of each next token, from ``input_ids`` [B, T]; positions from 0.

        Padding, if any, is on the right, where no earlier token can see it. With ``places`` [K],
        different numbers of the tokens counted through all rows, the logits [K, V] of those.
        """
        return self.transformer(input_ids, places)

    def generate(self, input_ids: Any, **options: Any) -> List[List[int]]:
        """Prompts with their continuations; see ``glm2.generate.continue_prompts``."""
        from glm2.generate import continue_prompts

        return continue_prompts(self, input_ids, **options)


class Transformer(nn.Cell):
    """Embedding, encoder and output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dtype = float_type(config.compute_dtype)
        cos, sin = rotary_table(config.seq_length, config.kv_channels)
        self.cos, self.sin = Tensor(cos).astype(self.dtype), Tensor(sin).astype(self.dtype)
        turn_cos, turn_sin = whole_turns(cos, sin)
        self.turn_cos = Tensor(turn_cos).astype(self.dtype)
        self.turn_sin = Tensor(turn_sin).astype(self.dtype)
        # By how much the tables turn each head: queries are scaled with it, values stay.
        heads, groups = config.num_attention_heads, config.groups
        turned = [config.kv_channels**-0.5] * heads + [1.0] * groups + [0.0] * groups
        other = [0.0] * (heads + groups) + [1.0] * groups
        self.turned_heads = Tensor(np.array(turned).reshape(-1, 1)).astype(self.dtype)
        self.other_heads = Tensor(np.array(other).reshape(-1, 1)).astype(self.dtype)
        self.positions = length = config.seq_length
        self.not_causal = Tensor(np.triu(np.ones((length, length), bool), 1))
        self.embedding = Embedding(config)
        self.outer = Outer()
        self.encoder = Encoder(config)
        self.output_layer = Linear(config.hidden_size, config.padded_vocab_size, config)
        self.gather_logits: Optional[nn.Cell] = None
        """What ranks that share the vocabulary do for generation; see tensor_parallel.py."""

    def construct(self, input_ids: Tensor, places: Optional[Tensor] = None) -> Tensor:
        batch, length = input_ids.shape
        cos, sin = ops.expand_dims(self.turn_cos, 1), ops.expand_dims(self.turn_sin, 1)
        cos, sin = self.turn(cos[:length], sin[:length])  # [T, N + 2G, D]
        # For each row of its own, once a step: no layer has to stretch them.
        rows, shape = ops.ones((batch, 1), cos.dtype), (batch, *cos.shape)
        turn = (self.outer(rows, cos).reshape(shape), self.outer(rows, sin).reshape(shape))
        mask = self.not_causal[:length, :length].astype(ms.float32) * MASKED
        return self.output_layer(self.encoder(self.embedding(input_ids), turn, mask, places))

    def logits(self, x: Tensor) -> Tensor:
        """Of the whole vocabulary, float32, from what the encoder gives: [.., H] -> [.., V]."""
        logits = self.output_layer(x).astype(ms.float32)
        return logits if self.gather_logits is None else self.gather_logits(logits)

    def place(
        self, slots: Tensor, padding: Tensor, last: Tensor
    ) -> Tuple[Tuple[Tensor, Tensor], Tensor]:
        """Rotary tables and mask of left-padded rows.

        ``slots`` [T] are the columns of the tokens at hand, ``padding`` [B] the padded columns
        of each row, ``last`` [S] all columns that can be attended to. Gives the tables
        [B, T, N + 2G, D] of the positions, which start at 0 behind the padding, and the mask
        [B, T, S] as float32 to be added to the scores.
        """
        slots, padding = slots.reshape((1, -1, 1)), padding.reshape((-1, 1, 1))
        # Padding has no position. Columns may outnumber positions: see Generator.
        position = ops.minimum(ops.maximum(slots - padding, 0), self.positions - 1)  # [B, T, 1]
        turn = self.turn(
            ops.gather(self.turn_cos, position, 0), ops.gather(self.turn_sin, position, 0)
        )
        hidden = ops.logical_or(last > slots, last < padding)
        return turn, hidden.astype(ms.float32) * MASKED

    def turn(self, cos: Tensor, sin: Tensor) -> Tuple[Tensor, Tensor]:
        """Tables for all heads at once, [.., N + 2G, D], from those of ``whole_turns``, [.., 1, D].

        They turn and scale queries, turn keys and leave values as they are.
        """
        return cos * self.turned_heads + self.other_heads, sin * self.turned_heads


class Embedding(nn.Cell):
    """Row of the table for each token: [B, T] -> [B, T, H]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dtype = float_type(config.compute_dtype)
        self.embedding_table = new_weight(
            (config.padded_vocab_size, config.hidden_size),
            float_type(config.param_init_type),
            Normal(config.initializer_range),
            name="embedding_table",
        )
        self.shared: Optional[nn.Cell] = None
        """How ranks that share the rows look tokens up; see tensor_parallel.py."""

    def construct(self, input_ids: Tensor) -> Tensor:
        if self.shared is not None:
            return self.shared(self.embedding_table, input_ids).astype(self.dtype)
        return ops.gather(self.embedding_table, input_ids, 0).astype(self.dtype)


class Encoder(nn.Cell):
    """All layers and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.CellList([Layer(config, i + 1) for i in range(config.num_layers)])
        self.has_final_norm = config.post_layer_norm
        if config.post_layer_norm:
            self.final_layernorm = RMSNorm(config.hidden_size, config)

    def construct(
        self,
        x: Tensor,
        turn: Tuple[Tensor, Tensor],
        mask: Tensor,
        places: Optional[Tensor] = None,
    ) -> Tensor:
        """Of tokens [B, T, H], or the ``places`` of them [K] -> [K, H]; see SelfAttention."""
        for layer in self.layers[:-1]:
            x = layer(x, turn, mask)
        x = self.layers[-1](x, turn, mask, places)
        return self.final_layernorm(x) if self.has_final_norm else x

    def extend(
        self,
        x: Tensor,
        turn: Tuple[Tensor, Tensor],
        mask: Tensor,
        places: Tensor,
        keys: Tuple[Parameter, ...],
        values: Tuple[Parameter, ...],
    ) -> Tensor:
        """The same for new tokens [B·T, H] behind those in the cache; see SelfAttention."""
        for i in range(len(self.layers)):
            x = self.layers[i].extend(x, turn, mask, places, keys[i], values[i])
        return self.final_layernorm(x) if self.has_final_norm else x


class Layer(nn.Cell):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config)
        self.self_attention = SelfAttention(config, number)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config)
        self.mlp = MLP(config)

    def construct(
        self,
        x: Tensor,
        turn: Tuple[Tensor, Tensor],
        mask: Tensor,
        places: Optional[Tensor] = None,
    ) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), turn, mask)
        if places is not None:  # nothing else is looked at behind the last attention
            x = ops.gather(x.reshape((-1, x.shape[-1])), places, 0)
        return x + self.mlp(self.post_attention_layernorm(x))

    def extend(
        self,
        x: Tensor,
        turn: Tuple[Tensor, Tensor],
        mask: Tensor,
        places: Tensor,
        keys: Parameter,
        values: Parameter,
    ) -> Tensor:
        """The same for new tokens behind those in the cache."""
        normed = self.input_layernorm(x)
        x = x + self.self_attention.extend(normed, turn, mask, places, keys, values)
        return x + self.mlp(self.post_attention_layernorm(x))


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies of the learned tokens, float32.

    ``logits`` [B, T, V]; ``labels`` [B, T], the same rows as the input; those equal to
    IGNORED_LABEL do not count. Token t is predicted at t - 1, so that the first target
    token, predicted by the last token of the prompt, is learned (as ChatGLM2's reference
    does).
    """
    # The labels move instead of the logits, which are far larger; the last token has none.
    none = ops.full_like(labels[:, :1], IGNORED_LABEL)
    labels = ops.concat((labels[:, 1:], none), 1).reshape((-1,))  # [B·T]
    return loss_by(_CROSS_ENTROPY, logits, labels)


def loss_by(cross_entropy: nn.Cell, logits: Tensor, labels: Tensor) -> Tensor:
    """The same by the ``cross_entropy`` of a network, of ``logits`` [.., V] whose next tokens are
    ``labels``, as many."""
    logits = logits.reshape((-1, logits.shape[-1])).astype(ms.float32)
    counts = (labels != IGNORED_LABEL).astype(ms.float32)
    loss, _ = cross_entropy(logits, ops.maximum(labels, 0), counts)
    return loss


_CROSS_ENTROPY = CrossEntropy()


def learned_tokens(labels: Tensor) -> Tensor:
    """How many tokens of ``labels`` [B, T] count in the loss, as float32."""
    return (labels[:, 1:] != IGNORED_LABEL).astype(ms.float32).sum()
