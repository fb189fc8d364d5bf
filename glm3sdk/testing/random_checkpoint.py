"""Checkpoints of random weights in Hugging Face layout, for tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np
from safetensors.numpy import save_file

from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import HostArray, numpy_dtype


def random_weights(
    config: Glm3Config, *, seed: int = 0, dtype: str = "float32", scale: float = 1.0
) -> dict[str, HostArray]:
    """Random weights that make every part of the model show in its logits.

    Matrices are normal with a deviation of `scale / sqrt(columns)`, so that activations
    keep their size through the layers; embeddings are normal; norms vary around 1;
    biases are not zero.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, HostArray] = {}
    for name, shape in config.tensor_shapes().items():
        values = rng.standard_normal(shape, np.float32)
        if name.endswith("layernorm.weight"):
            values = 1 + 0.1 * values
        elif name.endswith("word_embeddings.weight"):
            values = scale * values
        elif name.endswith("bias"):
            values = 0.5 * scale * values
        else:
            values = scale / np.sqrt(shape[1], dtype=np.float32) * values
        weights[name] = values.astype(numpy_dtype(dtype))
    return weights


def write_random_checkpoint(
    path: str | os.PathLike[str],
    config: Glm3Config,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    scale: float = 1.0,
) -> dict[str, HostArray]:
    """Write config.json and random weights into a directory, made where there is none.

    Args:
        path: the directory.
        config: the model's hyper-parameters.
        seed: of the random numbers.
        dtype: "float32", "float16" or "bfloat16".
        shards: safetensors files; with more than one, an index is written too.
        scale: multiplies the deviation of the weights.

    Returns:
        What was written: `random_weights` with the same arguments.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    weights = random_weights(config, seed=seed, dtype=dtype, scale=scale)
    values = {**config.to_hugging_face(), "torch_dtype": dtype}
    (directory / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    write_weights(directory, weights, shards=shards)
    return weights


def write_weights(directory: Path, weights: Mapping[str, HostArray], *, shards: int = 1) -> None:
    """Write tensors as `model.safetensors`, or as shards with their index."""
    contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}
    if shards == 1:
        save_file(contiguous, directory / "model.safetensors")
        return
    names = list(contiguous)
    placed: dict[str, str] = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[shard::shards]
        save_file({name: contiguous[name] for name in chosen}, directory / file_name)
        placed.update(dict.fromkeys(chosen, file_name))
    total = sum(array.nbytes for array in contiguous.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
