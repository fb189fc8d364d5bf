"""A training step against eager torch: same weights and batch, one run, interleaved.

    .venv/bin/pip install -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/train_step.py

A step is forward, backward, clipping and AdamW, over every weight ("full") or over a LoRA
adapter of rank 8 on query_key_value ("lora"). What counts are the ratios of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import seconds
from torch_glm3 import TorchTraining

from glm3sdk import Glm3Config, load_runtime
from glm3sdk.domain.lora import Lora
from glm3sdk.ports.training import TokenBatch, TrainingPlan
from glm3sdk.testing import write_random_checkpoint

RATE = 1e-4
PLANS = {"full": None, "lora": Lora(rank=8, alpha=32.0, dropout=0.0)}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1376)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    config = Glm3Config(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden,
        ffn_hidden_size=arguments.ffn,
        num_attention_heads=arguments.hidden // 64,
        kv_channels=64,
        padded_vocab_size=arguments.vocab,
        seq_length=arguments.length,
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(0, arguments.vocab, (arguments.batch, arguments.length + 1))
    labels = ids[:, 1:].copy()
    labels[:, : arguments.length // 4] = -100
    batch = TokenBatch(ids[:, :-1], labels)
    torch_batch = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(labels)

    actions: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as name:
        weights = write_random_checkpoint(Path(name), config)
        for plan, lora in PLANS.items():
            session = load_runtime(name).start_training(plan=TrainingPlan(lora=lora))
            peer = TorchTraining(
                config, weights, length=arguments.length, rank=lora.rank if lora else 0
            )
            actions[plan] = lambda session=session: (
                session.train_step([batch], learning_rate=RATE).loss
            )
            actions[f"torch {plan}"] = lambda peer=peer: peer.train_step(*torch_batch, RATE)
    first = {name: action() for name, action in actions.items()}
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(arguments.rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    medians = {name: statistics.median(values) for name, values in times.items()}
    report = {
        "difference of first losses": {
            plan: abs(first[plan] - first[f"torch {plan}"]) for plan in PLANS
        },
        "milliseconds": {name: round(1000 * value, 1) for name, value in medians.items()},
        "our time / torch's": {
            plan: round(medians[plan] / medians[f"torch {plan}"], 2) for plan in PLANS
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
