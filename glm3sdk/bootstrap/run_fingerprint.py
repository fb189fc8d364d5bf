"""What a resumed finetune run must have in common with the one before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs

from glm3sdk.config.schema import RunConfig
from glm3sdk.errors import InvalidDatasetError
from glm3sdk.services.datasets import Dataset

# All that decides the losses.
_DECIDING = ("model", "lora", "train_data", "training", "optimizer", "schedule", "loss_scale")
# Of those sections: what decides none, or is compared by what comes of it (the steps, the
# sequence length, the contents of data and tokenizer).
_FREE = (
    "model.recompute",
    "model.tokenizer",
    "train_data.path",
    "training.epochs",
    "training.log_every",
    "training.max_steps",
    "training.seq_length",
)


def fingerprint(
    config: RunConfig, *, dtype: str, train: Dataset, tokenizer_model: bytes, total_steps: int
) -> dict[str, Any]:
    """Every setting that decides a loss, by its name, as JSON values.

    Args:
        config: of the run.
        dtype: that the runtime holds weights in.
        train: the training data.
        tokenizer_model: the tokenizer's file.
        total_steps: of the run.

    Raises:
        InvalidDatasetError: the training file cannot be read.
    """
    flat: dict[str, Any] = {}
    for section in _DECIDING:
        settings = getattr(config, section)
        values = attrs.asdict(settings) if settings is not None else {"": None}
        flat.update({f"{section}.{key}".rstrip("."): value for key, value in values.items()})
    for key in _FREE:
        flat.pop(key, None)
    # What ranks share out among them may change, and the records of a step may not.
    flat["training.accumulate x parallel.data"] = (
        flat.pop("training.accumulate") * config.parallel.data
    )
    flat |= {
        "dtype": dtype,
        "records": len(train),
        "seq_length": train.seq_length,
        "tokenizer.sha256": hashlib.sha256(tokenizer_model).hexdigest(),
        "total_steps": total_steps,
        "train_data.sha256": _sha256(Path(train.report.name)),
    }
    # As a checkpoint's file will give it back: a tuple is a list there.
    same: dict[str, Any] = json.loads(json.dumps(flat))
    return same


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InvalidDatasetError(f"{path} cannot be read: {exc.strerror or exc}") from exc
