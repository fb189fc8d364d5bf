from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import ml_dtypes
import numpy as np
import pytest
from servers.obs_stores import connection, without_settings
from servers.s3_double import S3Double

from glm3sdk.adapters.storage.blob_checkpoints import BlobCheckpointStore
from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.blob_store import BlobStore
from glm3sdk.ports.checkpoint_store import CheckpointReader, CheckpointStore, TensorSpec
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract
from glm3sdk.testing.memory_blobs import MemoryBlobStore
from glm3sdk.testing.store_contract import CheckpointStoreContract

_runs = itertools.count()


class TestOnMemory(CheckpointStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> CheckpointStore:
        return BlobCheckpointStore(MemoryBlobStore(), staging=tmp_path / "staging")

    @pytest.fixture
    def root(self) -> str:
        return "memory://runs"


class TestOnLocalFiles(CheckpointStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> CheckpointStore:
        return BlobCheckpointStore(LocalBlobStore(), staging=tmp_path / "staging")

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"file://{quote(str(tmp_path))}/not%20yet/runs"


@pytest.fixture(scope="module")
def obs() -> Iterator[BlobStore]:
    """In parts of 64 bytes and pages of three."""
    with without_settings(), S3Double() as double:
        double.page_size = 3
        with closing(ObsBlobStore(connection(double.endpoint), part_size=64)) as store:
            yield store


class TestOnObs(CheckpointStoreContract):
    @pytest.fixture
    def store(self, obs: BlobStore, tmp_path: Path) -> CheckpointStore:
        return BlobCheckpointStore(obs, staging=tmp_path / "staging")

    @pytest.fixture
    def root(self) -> str:
        return f"obs://bucket/runs/{next(_runs)}"


class TestTheirCheckpoints(CheckpointReaderContract):
    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        values = np.arange(12, dtype=np.float32).reshape(4, 3)
        return {
            "matrix": values,
            "brain": values.astype(ml_dtypes.bfloat16),
            "row": np.arange(5, dtype=np.float16),
            "counts": np.arange(8, dtype=np.int64).reshape(4, 2),
        }

    @pytest.fixture(params=["memory", "local", "obs"])
    def reader(
        self,
        request: pytest.FixtureRequest,
        expected: Mapping[str, HostArray],
        obs: BlobStore,
        tmp_path: Path,
    ) -> CheckpointReader:
        blobs, uri = {
            "memory": (MemoryBlobStore(), "memory://a"),
            "local": (LocalBlobStore(), str(tmp_path / "a")),
            "obs": (obs, f"s3://bucket/readers/{next(_runs)}"),
        }[request.param]
        store = BlobCheckpointStore(blobs, staging=tmp_path / "staging")
        writer = store.create(uri)
        for number, (name, array) in enumerate(expected.items()):
            specs = {name: TensorSpec(array.shape, array.dtype.name)}
            writer.add_tensors(f"part-{number}.safetensors", specs, [(name, array)])
        writer.commit()
        return store.open(uri)
