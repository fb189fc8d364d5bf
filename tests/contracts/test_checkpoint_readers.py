from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract
from glm3sdk.testing.random_checkpoint import write_random_checkpoint, write_weights

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=2,
    kv_channels=4,
    multi_query_group_num=1,
    padded_vocab_size=16,
    seq_length=32,
)


class TestHuggingFaceDirectory(CheckpointReaderContract):
    @pytest.fixture(params=["float32", "float16", "bfloat16", "sharded"])
    def expected(self, request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, HostArray]:
        if request.param == "sharded":
            return write_random_checkpoint(tmp_path, CONFIG, shards=3)
        return write_random_checkpoint(tmp_path, CONFIG, dtype=request.param)

    @pytest.fixture
    def reader(self, expected: Mapping[str, HostArray], tmp_path: Path) -> CheckpointReader:
        return HuggingFaceDirectory(tmp_path)


class TestHuggingFaceDirectoryOfSeveralDtypes(CheckpointReaderContract):
    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        values = np.arange(12, dtype=np.float64).reshape(4, 3)
        return {
            "double": values,
            "half": values.astype(np.float16),
            "brain": values.astype(ml_dtypes.bfloat16),
            "row": np.arange(5, dtype=np.float32),
            "number": np.array(3, np.float32),
            "nothing": np.empty((0, 4), np.float32),
        }

    @pytest.fixture
    def reader(self, expected: Mapping[str, HostArray], tmp_path: Path) -> CheckpointReader:
        write_random_checkpoint(tmp_path, CONFIG)
        write_weights(tmp_path, expected)
        return HuggingFaceDirectory(tmp_path)
