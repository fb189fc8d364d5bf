"""ChatGLM3 in eager torch: the peer of the benchmarks, with a kv_cache written in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from glm3sdk import Glm3Config


class TorchGlm3:
    """A float32 model over the same weights as the SDK's.

    Args:
        config: hyper-parameters.
        weights: arrays under Hugging Face names.
        batch: sequences of equal length decoded side by side.
        length: most tokens of a sequence.
    """

    def __init__(
        self, config: Glm3Config, weights: Mapping[str, np.ndarray], *, batch: int, length: int
    ) -> None:
        self.config = config
        self.weights = {name: torch.from_numpy(value) for name, value in weights.items()}
        shape = (batch, config.multi_query_group_num, length, config.kv_channels)
        self.keys = [torch.zeros(shape) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape) for _ in range(config.num_layers)]
        turned = config.kv_channels // 2
        steps = torch.arange(0, turned, 2, dtype=torch.float64) / turned
        angles = torch.outer(torch.arange(length), config.rope_base**-steps)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        self.length = 0

    @torch.inference_mode()
    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Append input_ids `[B, T]`; logits `[B, V]` after the last token."""
        config, start = self.config, self.length
        batch, count = input_ids.shape
        end = start + count
        heads, groups = config.num_attention_heads, config.multi_query_group_num
        channels = config.kv_channels
        x = self.weights["transformer.embedding.word_embeddings.weight"][input_ids]
        for layer in range(config.num_layers):
            prefix = f"transformer.encoder.layers.{layer}."
            qkv = functional.linear(
                self._norm(x, prefix + "input_layernorm.weight"),
                self.weights[prefix + "self_attention.query_key_value.weight"],
                self.weights[prefix + "self_attention.query_key_value.bias"],
            )
            qkv = qkv.view(batch, count, heads + 2 * groups, channels).transpose(1, 2)
            query = self._turn(qkv[:, :heads], start, end)
            self.keys[layer][:, :, start:end] = self._turn(
                qkv[:, heads : heads + groups], start, end
            )
            self.values[layer][:, :, start:end] = qkv[:, heads + groups :]
            context = functional.scaled_dot_product_attention(
                query,
                self.keys[layer][:, :, :end],
                self.values[layer][:, :, :end],
                is_causal=count > 1 and start == 0,
                enable_gqa=True,
            )
            context = context.transpose(1, 2).reshape(batch, count, heads * channels)
            x = x + functional.linear(context, self.weights[prefix + "self_attention.dense.weight"])
            hidden = functional.linear(
                self._norm(x, prefix + "post_attention_layernorm.weight"),
                self.weights[prefix + "mlp.dense_h_to_4h.weight"],
            )
            gate, up = hidden.chunk(2, dim=-1)
            x = x + functional.linear(
                functional.silu(gate) * up, self.weights[prefix + "mlp.dense_4h_to_h.weight"]
            )
        self.length = end
        x = self._norm(x[:, -1], "transformer.encoder.final_layernorm.weight")
        return functional.linear(x, self.weights["transformer.output_layer.weight"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        shape = (self.config.hidden_size,)
        return functional.rms_norm(x, shape, self.weights[name], self.config.layernorm_epsilon)

    def _turn(self, x: torch.Tensor, start: int, end: int) -> torch.Tensor:
        half = self.config.kv_channels // 2
        turned, rest = x[..., :half], x[..., half:]
        even, odd = turned[..., 0::2], turned[..., 1::2]
        cos, sin = self.cos[start:end], self.sin[start:end]
        pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)
