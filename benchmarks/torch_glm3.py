"""ChatGLM3 in eager torch: the peer of the benchmarks, in decoding and in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional

from glm3sdk import Glm3Config

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class TorchLayers:
    """The layers over float32 weights, without what differs between decoding and training.

    Args:
        config: hyper-parameters.
        weights: arrays under Hugging Face names.
        length: most tokens of a sequence.
    """

    def __init__(self, config: Glm3Config, weights: Mapping[str, np.ndarray], length: int) -> None:
        self.config = config
        self.weights = {name: torch.from_numpy(value) for name, value in weights.items()}
        turned = config.kv_channels // 2
        steps = torch.arange(0, turned, 2, dtype=torch.float64) / turned
        angles = torch.outer(torch.arange(length), config.rope_base**-steps)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()

    def hidden(self, input_ids: torch.Tensor, start: int, attend: Attend) -> torch.Tensor:
        """The last layer's output for input_ids `[B, T]`, which begin at position `start`."""
        config = self.config
        batch, count = input_ids.shape
        heads, groups = config.num_attention_heads, config.multi_query_group_num
        x = functional.embedding(
            input_ids, self.weights["transformer.embedding.word_embeddings.weight"]
        )
        for layer in range(config.num_layers):
            prefix = f"transformer.encoder.layers.{layer}."
            qkv = self.linear(
                self._norm(x, prefix + "input_layernorm.weight"),
                prefix + "self_attention.query_key_value",
            )
            qkv = qkv.view(batch, count, heads + 2 * groups, config.kv_channels).transpose(1, 2)
            query = self._turn(qkv[:, :heads], start)
            key = self._turn(qkv[:, heads : heads + groups], start)
            context = attend(layer, query, key, qkv[:, heads + groups :])
            context = context.transpose(1, 2).reshape(batch, count, heads * config.kv_channels)
            x = x + self.linear(context, prefix + "self_attention.dense")
            normed = self._norm(x, prefix + "post_attention_layernorm.weight")
            gate, up = self.linear(normed, prefix + "mlp.dense_h_to_4h").chunk(2, dim=-1)
            x = x + self.linear(functional.silu(gate) * up, prefix + "mlp.dense_4h_to_h")
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the last layer's output."""
        x = self._norm(x, "transformer.encoder.final_layernorm.weight")
        return functional.linear(x, self.weights["transformer.output_layer.weight"])

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """A layer's linear map."""
        return functional.linear(
            x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        )

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        shape = (self.config.hidden_size,)
        return functional.rms_norm(x, shape, self.weights[name], self.config.layernorm_epsilon)

    def _turn(self, x: torch.Tensor, start: int) -> torch.Tensor:
        half, end = self.config.kv_channels // 2, start + x.shape[-2]
        turned, rest = x[..., :half], x[..., half:]
        even, odd = turned[..., 0::2], turned[..., 1::2]
        cos, sin = self.cos[start:end], self.sin[start:end]
        pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)


class TorchGlm3(TorchLayers):
    """Decoding with a kv_cache written in place.

    Args:
        config: hyper-parameters.
        weights: arrays under Hugging Face names.
        batch: sequences of equal length decoded side by side.
        length: most tokens of a sequence.
    """

    def __init__(
        self, config: Glm3Config, weights: Mapping[str, np.ndarray], *, batch: int, length: int
    ) -> None:
        super().__init__(config, weights, length)
        shape = (batch, config.multi_query_group_num, length, config.kv_channels)
        self.keys = [torch.zeros(shape) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape) for _ in range(config.num_layers)]
        self.length = 0

    @torch.inference_mode()
    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Append input_ids `[B, T]`; logits `[B, V]` after the last token."""
        start, count = self.length, input_ids.shape[1]
        end = start + count

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> torch.Tensor:
            self.keys[layer][:, :, start:end] = key
            self.values[layer][:, :, start:end] = value
            return functional.scaled_dot_product_attention(
                query,
                self.keys[layer][:, :, :end],
                self.values[layer][:, :, :end],
                is_causal=count > 1 and start == 0,
                enable_gqa=True,
            )

        x = self.hidden(input_ids, start, attend)
        self.length = end
        return self.logits(x[:, -1])


class TorchTraining(TorchLayers):
    """AdamW on every weight, or on the matrices of a LoRA adapter.

    Args:
        config: hyper-parameters.
        weights: arrays under Hugging Face names; they are copied.
        length: tokens of a sequence.
        rank: of an adapter on query_key_value, scaled by 4, without dropout; 0 trains
            every weight.
    """

    def __init__(
        self, config: Glm3Config, weights: Mapping[str, np.ndarray], *, length: int, rank: int = 0
    ) -> None:
        super().__init__(config, {name: value.copy() for name, value in weights.items()}, length)
        self.pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if rank:
            for name, weight in self.weights.items():
                if name.endswith("query_key_value.weight"):
                    rows, columns = weight.shape
                    pair = torch.randn(rank, columns) / columns**0.5, torch.zeros(rows, rank)
                    self.pairs[name.removesuffix(".weight")] = pair
            trained = [matrix for pair in self.pairs.values() for matrix in pair]
        else:
            trained = list(self.weights.values())
        self.trained = [tensor.requires_grad_() for tensor in trained]
        matrices = [tensor for tensor in trained if tensor.ndim == 2]
        others = [tensor for tensor in trained if tensor.ndim == 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=(0.9, 0.95), weight_decay=0.1
        )

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = super().linear(x, name)
        if name not in self.pairs:
            return y
        a, b = self.pairs[name]
        return y + functional.linear(functional.linear(x, a), b) * 4.0

    def train_step(
        self, input_ids: torch.Tensor, labels: torch.Tensor, learning_rate: float
    ) -> float:
        """One step on input_ids and labels `[B, T]`; the loss."""

        def attend(
            layer: int,  # noqa: ARG001  # a cache would need it
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
        ) -> torch.Tensor:
            return functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

        logits = self.logits(self.hidden(input_ids, 0, attend))
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return loss.item()
