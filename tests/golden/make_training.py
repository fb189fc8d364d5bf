"""Make training.npz: gradients and AdamW steps of a small ChatGLM3, by torch in float64.

pip install torch==2.13.0
python tests/golden/make_training.py

The model is written from the published architecture; nothing of the SDK is used. The file
holds, beside what torch computed, everything that it computed it from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

LAYERS, HIDDEN, FFN, HEADS, GROUPS, CHANNELS, VOCAB = 2, 16, 12, 4, 2, 8, 24
EPSILON, ROPE_RATIO = 1e-5, 50.0
STEPS, ROWS, LENGTH = 10, 4, 9
RATE, RATE_STEPS, RATE_POWER = 5e-3, 10, 2.0
LORA = {"rank": 2, "alpha": 6.0, "targets": ["query_key_value", "dense_4h_to_h"]}

Tensors = Mapping[str, torch.Tensor]


def initial_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20)
    shapes = {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "input_layernorm.weight": (HIDDEN,),
            "self_attention.query_key_value.weight": ((HEADS + 2 * GROUPS) * CHANNELS, HIDDEN),
            "self_attention.query_key_value.bias": ((HEADS + 2 * GROUPS) * CHANNELS,),
            "self_attention.dense.weight": (HIDDEN, HEADS * CHANNELS),
            "post_attention_layernorm.weight": (HIDDEN,),
            "mlp.dense_h_to_4h.weight": (2 * FFN, HIDDEN),
            "mlp.dense_4h_to_h.weight": (HIDDEN, FFN),
        }.items():
            shapes[f"transformer.encoder.layers.{layer}.{name}"] = shape
    weights = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        values = 1.0 + 0.2 * values if "layernorm" in name else values * 0.3
        weights[name] = values.astype(np.float32)
    return weights


def initial_adapter(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(21)
    adapter = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module != name and module.rsplit(".", 1)[-1] in LORA["targets"]:
            for matrix, shape in (
                ("A", (LORA["rank"], weight.shape[1])),
                ("B", (weight.shape[0], LORA["rank"])),
            ):
                values = (0.3 * rng.standard_normal(shape)).astype(np.float32)
                adapter[f"base_model.model.{module}.lora_{matrix}.weight"] = values
    return adapter


def turned(x: torch.Tensor) -> torch.Tensor:
    """x `[B, heads, T, D]`; neighbours in the first half are a complex number that turns."""
    half = CHANNELS // 2
    base = 10000.0 * ROPE_RATIO
    frequencies = base ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(x.shape[2], dtype=torch.float64), frequencies)
    numbers = torch.view_as_complex(x[..., :half].reshape(*x.shape[:3], half // 2, 2))
    numbers = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((torch.view_as_real(numbers).flatten(-2), x[..., half:]), -1)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def loss(
    weights: Tensors, adapter: Tensors, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mean negative log-likelihood of the labels that are not -100."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
        a = adapter.get(f"base_model.model.{name}.lora_A.weight")
        if a is None:
            return y
        b = adapter[f"base_model.model.{name}.lora_B.weight"]
        return y + LORA["alpha"] / LORA["rank"] * (x @ a.T @ b.T)

    future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    x = weights["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(LAYERS):
        prefix = f"transformer.encoder.layers.{layer}."
        normed = norm(x, weights[prefix + "input_layernorm.weight"])
        qkv = linear(normed, prefix + "self_attention.query_key_value")
        qkv = qkv.unflatten(-1, (-1, CHANNELS)).transpose(1, 2)
        query, key, value = qkv.split((HEADS, GROUPS, GROUPS), 1)
        key = turned(key).repeat_interleave(HEADS // GROUPS, 1)
        value = value.repeat_interleave(HEADS // GROUPS, 1)
        scores = turned(query) @ key.transpose(-1, -2) / CHANNELS**0.5
        context = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
        x = x + linear(context.transpose(1, 2).flatten(-2), prefix + "self_attention.dense")
        normed = norm(x, weights[prefix + "post_attention_layernorm.weight"])
        gate, up = linear(normed, prefix + "mlp.dense_h_to_4h").chunk(2, -1)
        x = x + linear(gate * torch.sigmoid(gate) * up, prefix + "mlp.dense_4h_to_h")
    x = norm(x, weights["transformer.encoder.final_layernorm.weight"])
    logits = linear(x, "transformer.output_layer")
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def train(
    trained: dict[str, torch.Tensor], step_loss: Callable[[int], torch.Tensor]
) -> dict[str, np.ndarray]:
    """Ten steps; figures by name."""
    for tensor in trained.values():
        tensor.requires_grad_()
    groups = [
        {"params": [t for t in trained.values() if t.ndim == 2], "weight_decay": 0.1},
        {"params": [t for t in trained.values() if t.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=RATE, betas=(0.9, 0.95), eps=1e-8
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(
        optimizer, total_iters=RATE_STEPS, power=RATE_POWER
    )
    figures: dict[str, np.ndarray] = {}
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        value = step_loss(step)
        value.backward()
        if step == 0:
            for name, tensor in trained.items():
                figures[f"gradient/{name}"] = tensor.grad.numpy().astype(np.float32)
        norms.append(torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0).item())
        losses.append(value.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    for name, tensor in trained.items():
        figures[f"final/{name}"] = tensor.detach().numpy().astype(np.float32)
    return figures | {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "rates": np.array(rates),
    }


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()}


def main() -> None:
    rng = np.random.default_rng(22)
    ids = rng.integers(0, VOCAB, (STEPS, ROWS, LENGTH + 1))
    labels = ids[:, :, 1:].copy()
    labels[rng.random(labels.shape) < 0.3] = -100
    ids = ids[:, :, :-1].copy()
    batches = list(zip(torch.from_numpy(ids), torch.from_numpy(labels), strict=True))
    weights = initial_weights()
    adapter = initial_adapter(weights)
    full, frozen, pair = as_torch(weights), as_torch(weights), as_torch(adapter)
    runs = {
        "full": train(full, lambda step: loss(full, {}, *batches[step])),
        "lora": train(pair, lambda step: loss(frozen, pair, *batches[step])),
    }
    config = {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "num_attention_heads": HEADS,
        "multi_query_group_num": GROUPS,
        "kv_channels": CHANNELS,
        "padded_vocab_size": VOCAB,
        "layernorm_epsilon": EPSILON,
        "rope_ratio": ROPE_RATIO,
    }
    rate = {"peak": RATE, "total_steps": RATE_STEPS + 1, "power": RATE_POWER}
    about = {"config": config, "lora": LORA, "rate": rate, "torch": torch.__version__}
    arrays = {"about": np.array(json.dumps(about)), "input_ids": ids, "labels": labels}
    arrays |= {f"initial/{name}": value for name, value in (weights | adapter).items()}
    for run, figures in runs.items():
        arrays |= {f"{run}/{name}": value for name, value in figures.items()}
    np.savez_compressed(Path(__file__).with_name("training.npz"), **arrays)


if __name__ == "__main__":
    main()
