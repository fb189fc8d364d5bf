"""Checkpoints in an object store, and what goes wrong with those alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from servers.obs_stores import double, settings, store, waits  # noqa: F401  # fixtures
from servers.s3_double import S3Double

from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.errors import BlobUnavailableError, CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import TensorSpec

URI = "obs://bucket/runs/a"
# Ten parts of 1000 bytes and one of the header.
VALUES = np.arange(5000, dtype=np.float16).reshape(50, 100)


@pytest.fixture
def checkpoints(store: ObsBlobStore, waits: list[float], tmp_path: Path) -> BlobCheckpointStore:  # noqa: F811
    return BlobCheckpointStore(store, staging=tmp_path / "staging", sleep=waits.append)


def save(checkpoints: BlobCheckpointStore, factor: float = 1) -> None:
    writer = checkpoints.create(URI)
    values = [("weight", VALUES * np.float16(factor))]
    writer.add_tensors("model.safetensors", {"weight": TensorSpec((50, 100), "float16")}, values)
    writer.add_file("config.json", b"{}")
    writer.commit()


def sent_parts(double: S3Double) -> int:  # noqa: F811
    return double.count("PUT", "partNumber")


def test_an_upload_that_ended_in_the_middle_goes_on_with_the_parts_that_are_missing(
    checkpoints: BlobCheckpointStore,
    double: S3Double,  # noqa: F811
) -> None:
    double.on("PUT", query="partNumber", skip=5, times=10_000, status=503)
    with pytest.raises(CheckpointWriteError, match=f"{URI} could not be published"):
        save(checkpoints)
    with pytest.raises(InvalidCheckpointError, match="no checkpoint at"):
        checkpoints.open(URI)
    (unfinished,) = double.uploads.values()
    arrived, before = len(unfinished.parts), sent_parts(double)
    assert arrived == 5
    double._faults.clear()
    save(checkpoints)
    assert sent_parts(double) - before == 11 - arrived
    assert not double.uploads
    np.testing.assert_array_equal(checkpoints.open(URI).read("weight"), VALUES)


def test_a_busy_store_is_waited_for_and_then_named(
    checkpoints: BlobCheckpointStore,
    double: S3Double,  # noqa: F811
    waits: list[float],  # noqa: F811
) -> None:
    save(checkpoints)
    double.on("PUT", times=10_000, status=503)
    with pytest.raises(CheckpointWriteError, match=r"503|SlowDown"):
        save(checkpoints, factor=2)
    assert len(waits) >= 5
    np.testing.assert_array_equal(checkpoints.open(URI).read("weight"), VALUES)
    double.on("GET", times=10_000, status=503)
    with pytest.raises(BlobUnavailableError, match="tried 6 times"):
        checkpoints.open(URI)


def test_a_connection_that_drops_while_a_slice_is_read_is_taken_up_again(
    checkpoints: BlobCheckpointStore,
    double: S3Double,  # noqa: F811
    waits: list[float],  # noqa: F811
) -> None:
    save(checkpoints)
    opened = checkpoints.open(URI)
    double.on("GET", times=2, body=700)
    np.testing.assert_array_equal(opened.read("weight", (slice(10, 40),)), VALUES[10:40])
    assert len(waits) == 2


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(
    checkpoints: BlobCheckpointStore,
    double: S3Double,  # noqa: F811
) -> None:
    save(checkpoints)
    opened = checkpoints.open(URI)
    double.on("GET", times=1, before=lambda: save(checkpoints, factor=2))
    with pytest.raises(InvalidCheckpointError, match=f"{URI} was replaced or removed"):
        opened.read("weight")
