"""Whether a run's checkpoints will have room, told before the first step."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np

from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.config.schema import CheckpointSettings
from glm3sdk.errors import CheckpointWriteError
from glm3sdk.ports.training import StatePart, TrainingSession
from glm3sdk.services.run_checkpoints import CHECKPOINTS

_GB = 10**9


def require_space(
    output: Path,
    session: TrainingSession,
    settings: CheckpointSettings,
    total_steps: int,
    step: int,
) -> None:
    """Check that the disk holds all that a run keeps at once.

    Args:
        output: the run's directory, which is there.
        session: tells how large its state is.
        settings: how many checkpoints are written and kept.
        total_steps: of the run.
        step: steps already taken.

    Raises:
        CheckpointWriteError: there is too little room; the message has the figures.
    """
    weights, optimizer = (_size(session, part) for part in StatePart)
    present = len(LocalCheckpointStore().list(str(output / CHECKPOINTS)))
    # The last step publishes the result in the place of a checkpoint.
    coming = (total_steps - 1) // settings.every - step // settings.every
    needed = new_checkpoints(present, coming, settings.keep) * (weights + optimizer)
    staying = max(min(present + coming, settings.keep) - present, 0) * (weights + optimizer)
    needed = max(needed, staying + weights)
    free = shutil.disk_usage(output).free
    if free < needed:
        raise CheckpointWriteError(
            f"{output} has {free / _GB:.2f} GB free and this run's checkpoints and result take "
            f"{needed / _GB:.2f} GB ({(weights + optimizer) / _GB:.2f} GB a checkpoint): free "
            f"some space, keep fewer (checkpoints.keep={settings.keep}), or choose another output"
        )


def new_checkpoints(present: int, coming: int, keep: int) -> int:
    """The most checkpoints that lie beside the present ones at once.

    A new one is written before the oldest goes, so there is one more than are kept.
    """
    if not coming:
        return 0
    return max(min(present + coming, keep + 1) - present, 1)


def _size(session: TrainingSession, part: StatePart) -> int:
    return sum(
        math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        for spec in session.specs(part).values()
    )
