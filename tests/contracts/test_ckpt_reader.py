from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract


class TestMindSporeCkptFile(CheckpointReaderContract):
    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        values = np.arange(24, dtype=np.float64)
        return {
            "double": values.reshape(8, 3),
            "half": values.reshape(6, 4).astype(np.float16),
            "brain": values.reshape(2, 3, 4).astype(ml_dtypes.bfloat16),
            "row": np.arange(5, dtype=np.float32),
            "number": np.array(3, np.float32),
            "nothing": np.empty((0, 4), np.float32),
            "counts": np.arange(8).reshape(4, 2),
        }

    @pytest.fixture(params=["whole", "in pieces"])
    def reader(
        self, request: pytest.FixtureRequest, expected: Mapping[str, HostArray], tmp_path: Path
    ) -> CheckpointReader:
        specs = {name: TensorSpec(a.shape, a.dtype.name) for name, a in expected.items()}
        pieces = {} if request.param == "whole" else {"piece_bytes": 16}
        write_mindspore_ckpt(tmp_path / "a.ckpt", specs, expected.items(), **pieces)
        return MindSporeCkptFile(tmp_path / "a.ckpt")
