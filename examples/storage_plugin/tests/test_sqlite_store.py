"""The contracts that glm3sdk ships, passed by this store, and by checkpoints on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from glm3sdk_sqlite import SqliteBlobStore

from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.ports.blob_store import BlobStore
from glm3sdk.ports.checkpoint_store import CheckpointStore
from glm3sdk.testing import BlobStoreContract, CheckpointStoreContract


class TestSqliteBlobStore(BlobStoreContract):
    """Every test of the contract, on a file of its own."""

    @pytest.fixture
    def store(self) -> BlobStore:
        """The store."""
        return SqliteBlobStore()

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        """A URI below which there is nothing."""
        return f"sqlite://{tmp_path}/test.db/runs"


class TestCheckpoints(CheckpointStoreContract):
    """What glm3sdk puts on the store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> CheckpointStore:
        """The store."""
        return BlobCheckpointStore(SqliteBlobStore(), staging=tmp_path / "staging")

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        """A URI below which there is nothing."""
        return f"sqlite://{tmp_path}/test.db/runs"
