"""Decode and prefill against eager torch: same random weights, one run, interleaved.

    .venv/bin/pip install -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/decode.py

Prints medians and, what counts, their ratios: a machine's bandwidth swings from hour to
hour, so absolute figures of different runs do not compare.
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
from torch_glm3 import TorchGlm3

from glm3sdk import Glm3Config, load_runtime
from glm3sdk.testing import write_random_checkpoint


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=2752)
    parser.add_argument("--vocab", type=int, default=65024)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=40)
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
    with tempfile.TemporaryDirectory() as name:
        weights = write_random_checkpoint(Path(name), config)
        runtime = load_runtime(name)
    session = runtime.start_decode(slots=8, max_seq_length=arguments.length)
    prompt = np.arange(arguments.prompt, dtype=np.int32) % config.padded_vocab_size
    peers = {
        size: TorchGlm3(config, weights, batch=size, length=arguments.length) for size in (1, 8)
    }

    def ours_prefill() -> np.ndarray:
        session.truncate(0, 0)
        return session.prefill(0, prompt)

    def torch_prefill(size: int) -> torch.Tensor:
        peers[size].length = 0
        return peers[size].step(torch.from_numpy(prompt).long().expand(size, -1))

    difference = np.abs(ours_prefill() - torch_prefill(1)[0].numpy()).max()
    for slot in range(1, 8):
        session.prefill(slot, prompt)
    torch_prefill(8)
    slots = list(range(8))
    actions: dict[str, Callable[[], object]] = {
        "prefill": ours_prefill,
        "torch prefill": lambda: torch_prefill(1),
        "decode 1": lambda: session.decode([0], [5]),
        "torch decode 1": lambda: peers[1].step(torch.full((1, 1), 5)),
        "decode 8": lambda: session.decode(slots, [5] * 8),
        "torch decode 8": lambda: peers[8].step(torch.full((8, 1), 5)),
    }
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(arguments.rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    medians = {name: statistics.median(values) for name, values in times.items()}
    weight_bytes = 4 * (config.parameter_count - config.padded_vocab_size * config.hidden_size)
    report = {
        "largest difference of logits": float(difference),
        "milliseconds": {name: round(1000 * value, 2) for name, value in medians.items()},
        "torch time / ours": {
            name: round(medians[f"torch {name}"] / medians[name], 2)
            for name in ("prefill", "decode 1", "decode 8")
        },
        "batch 8 tokens/s over batch 1": round(8 * medians["decode 1"] / medians["decode 8"], 2),
        "decode 1 reads GB/s of weights": round(weight_bytes / medians["decode 1"] / 1e9, 1),
    }
    print(json.dumps(report, indent=2))
    runtime.close()


if __name__ == "__main__":
    main()
