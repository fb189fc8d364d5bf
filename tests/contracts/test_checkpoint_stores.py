from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import ml_dtypes
import numpy as np
import pytest

from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, CheckpointStore, TensorSpec
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract
from glm3sdk.testing.memory_store import MemoryCheckpointStore
from glm3sdk.testing.store_contract import CheckpointStoreContract


class TestLocalCheckpointStore(CheckpointStoreContract):
    @pytest.fixture
    def store(self) -> CheckpointStore:
        return LocalCheckpointStore()

    @pytest.fixture(params=["path", "uri", "relative"])
    def root(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        monkeypatch.chdir(tmp_path)
        if request.param == "uri":
            return f"file://{quote(str(tmp_path))}/not%20yet/runs"
        return "runs" if request.param == "relative" else str(tmp_path / "not yet" / "runs")


class TestMemoryCheckpointStore(CheckpointStoreContract):
    @pytest.fixture
    def store(self) -> CheckpointStore:
        return MemoryCheckpointStore()

    @pytest.fixture
    def root(self) -> str:
        return "memory://runs"


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

    @pytest.fixture(params=["local", "memory"])
    def reader(
        self, request: pytest.FixtureRequest, expected: Mapping[str, HostArray], tmp_path: Path
    ) -> CheckpointReader:
        local = request.param == "local"
        store: CheckpointStore = LocalCheckpointStore() if local else MemoryCheckpointStore()
        writer = store.create(str(tmp_path / "a"))
        for number, (name, array) in enumerate(expected.items()):
            specs = {name: TensorSpec(array.shape, array.dtype.name)}
            writer.add_tensors(f"part-{number}.safetensors", specs, [(name, array)])
        writer.commit()
        return store.open(str(tmp_path / "a"))
