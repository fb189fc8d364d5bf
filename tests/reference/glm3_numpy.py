"""ChatGLM3's forward pass in plain numpy, to check runtimes against.

Written from the description of the architecture, with loops over positions and heads and
without any of the rearrangements that a fast implementation makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glm3sdk.domain.model import Glm3Config


def forward(
    config: Glm3Config,
    weights: Mapping[str, Any],
    input_ids: Sequence[int],
    *,
    dtype: type = np.float64,
) -> np.ndarray:
    """Logits `[T, V]` of `input_ids` `[T]`, each row seeing itself and what stands before."""
    weight = {
        name.removeprefix("transformer."): np.asarray(array).astype(dtype)
        for name, array in weights.items()
    }
    stream = [weight["embedding.word_embeddings.weight"][token_id] for token_id in input_ids]
    for number in range(config.num_layers):
        prefix = f"encoder.layers.{number}."
        layer = {
            name.removeprefix(prefix): array
            for name, array in weight.items()
            if name.startswith(prefix)
        }
        stream = _layer(config, layer, stream)
    final = weight["encoder.final_layernorm.weight"]
    return np.stack(
        [
            weight["output_layer.weight"] @ _rms_norm(row, final, config.layernorm_epsilon)
            for row in stream
        ]
    )


def _layer(
    config: Glm3Config, layer: Mapping[str, np.ndarray], stream: list[np.ndarray]
) -> list[np.ndarray]:
    epsilon = config.layernorm_epsilon
    normed = [_rms_norm(row, layer["input_layernorm.weight"], epsilon) for row in stream]
    attended = _attention(config, layer, normed)
    stream = [row + change for row, change in zip(stream, attended, strict=True)]
    result = []
    for row in stream:
        normed_row = _rms_norm(row, layer["post_attention_layernorm.weight"], epsilon)
        both = layer["mlp.dense_h_to_4h.weight"] @ normed_row
        gate, value = both[: config.ffn_hidden_size], both[config.ffn_hidden_size :]
        swish = gate / (1 + np.exp(-gate))
        result.append(row + layer["mlp.dense_4h_to_h.weight"] @ (swish * value))
    return result


def _attention(
    config: Glm3Config, layer: Mapping[str, np.ndarray], rows: list[np.ndarray]
) -> list[np.ndarray]:
    heads, groups = config.num_attention_heads, config.multi_query_group_num
    width = config.kv_channels
    queries, keys, values = [], [], []
    for position, row in enumerate(rows):
        mixed = (
            layer["self_attention.query_key_value.weight"] @ row
            + layer["self_attention.query_key_value.bias"]
        )
        parts = [mixed[start : start + width] for start in range(0, len(mixed), width)]
        assert len(parts) == heads + 2 * groups
        queries.append([_rotate(config, part, position) for part in parts[:heads]])
        keys.append([_rotate(config, part, position) for part in parts[heads : heads + groups]])
        values.append(parts[heads + groups :])
    result = []
    for position in range(len(rows)):
        context = []
        for head in range(heads):
            group = head // (heads // groups)
            query = queries[position][head]
            scores = np.array(
                [query @ keys[seen][group] for seen in range(position + 1)], query.dtype
            ) / query.dtype.type(np.sqrt(width))
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            context.append(sum(share * values[seen][group] for seen, share in enumerate(shares)))
        result.append(layer["self_attention.dense.weight"] @ np.concatenate(context))
    return result


def _rotate(config: Glm3Config, vector: np.ndarray, position: int) -> np.ndarray:
    """Turn neighbours (2i, 2i+1) of the first half of a head as complex numbers."""
    rotary = config.kv_channels // 2
    turned = vector.copy()
    for pair in range(rotary // 2):
        angle = position * (10000.0 * config.rope_ratio) ** (-2 * pair / rotary)
        number = complex(vector[2 * pair], vector[2 * pair + 1]) * np.exp(1j * angle)
        turned[2 * pair], turned[2 * pair + 1] = number.real, number.imag
    return turned


def _rms_norm(row: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    mean_square = sum(float(value) ** 2 for value in row) / len(row)
    return row / row.dtype.type(np.sqrt(mean_square + epsilon)) * scale
