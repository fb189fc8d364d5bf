"""Whether a run's checkpoints will have room, told before the first step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"

from glm3sdk.bootstrap.run_output import RunOutput
from glm3sdk.config.schema import CheckpointSettings
from glm3sdk.errors import CheckpointWriteError
from glm3sdk.ports.arrays import numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.training import StatePart, TrainingSession
from glm3sdk.services.run_ranks import RunRanks
from glm3sdk.services.run_shards import spread, whole_specs

_GB = 10**9


def require_space(
    output: RunOutput,
    session: TrainingSession,
    settings: CheckpointSettings,
    *,
    total_steps: int,
    step: int,
    ranks: RunRanks,
) -> None:
    """Check that the disk holds all that a run keeps at once.

    What goes to a blob store lies here one checkpoint at a time, until it is sent; of several
    ranks', this one's part.

    Args:
        output: where the run's checkpoints go; a directory is there.
        session: tells how large its state is, or this rank's part of it.
        settings: how many checkpoints are written and kept.
        total_steps: of the run.
        step: steps already taken.
        ranks: those that store the state together.

    Raises:
        CheckpointWriteError: there is too little room; the message has the figures.
    """
    folder = output.staging()
    if folder is None:
        return
    whole = output.is_local and ranks.size > 1
    specs = [session.specs(part) for part in StatePart]
    if whole:
        specs = [whole_specs(each, spread(ranks, each)) for each in specs]
    weights, optimizer = map(_size, specs)
    # The last step publishes the result in the place of a checkpoint.
    coming = (total_steps - 1) // settings.every - step // settings.every
    if output.is_local:
        present = len(output.checkpoints())
        needed = new_checkpoints(present, coming, settings.keep) * (weights + optimizer)
        staying = max(min(present + coming, settings.keep) - present, 0) * (weights + optimizer)
        # Ranks store their parts of the result before it is put together.
        needed = max(needed, staying + weights * (2 if whole else 1))
        kept = "this run's checkpoints and result take"
        remedy = f"keep fewer (checkpoints.keep={settings.keep}), or choose another output"
    else:
        needed = weights + optimizer if coming > 0 else weights
        kept = f"a checkpoint of this run, which is put together there for {output.uri}, takes"
        remedy = "or choose another disk (environment variable GLM3SDK_CACHE_DIR)"
    free = shutil.disk_usage(_nearest(folder)).free
    if free < needed:
        raise CheckpointWriteError(
            f"{folder} has {free / _GB:.2f} GB free and {kept} {needed / _GB:.2f} GB "
            f"({(weights + optimizer) / _GB:.2f} GB a checkpoint): free some space, {remedy}"
        )


def new_checkpoints(present: int, coming: int, keep: int) -> int:
    """The most checkpoints that lie beside the present ones at once.

    A new one is written before the oldest goes, so there is one more than are kept.
    """
    if not coming:
        return 0
    return max(min(present + coming, keep + 1) - present, 1)


def _size(specs: Mapping[str, TensorSpec]) -> int:
    return sum(math.prod(spec.shape) * numpy_dtype(spec.dtype).itemsize for spec in specs.values())


def _nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())
