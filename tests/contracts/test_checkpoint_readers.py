from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from reference.torch_files import pickled, tensor, write_archive, write_torch

from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.torch_bin import TorchBinFile
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


class TestHuggingFaceDirectoryOfTorchFiles(CheckpointReaderContract):
    @pytest.fixture(params=["float32", "float16", "bfloat16"])
    def expected(self, request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, HostArray]:
        weights = write_random_checkpoint(tmp_path, CONFIG, dtype=request.param)
        (tmp_path / "model.safetensors").unlink()
        write_torch(tmp_path / "pytorch_model.bin", weights)
        return weights

    @pytest.fixture
    def reader(self, expected: Mapping[str, HostArray], tmp_path: Path) -> CheckpointReader:
        return HuggingFaceDirectory(tmp_path)


class TestTorchBinFile(CheckpointReaderContract):
    """Tensors in every order of their dimensions, in one storage."""

    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        values = np.arange(60, dtype=np.float32)
        return {
            "rows": values[5:25].reshape(5, 4),
            "columns": values[5:25].reshape(5, 4).T,
            "cube": values.reshape(3, 4, 5),
            "turned": values.reshape(3, 4, 5).transpose(2, 0, 1),
            "part": values.reshape(3, 4, 5)[:, 1:3, :],
            "line": values[7:11],
            "number": values[9:10].reshape(()),
            "nothing": np.empty((0, 4), np.float32),
        }

    @pytest.fixture
    def reader(self, expected: Mapping[str, HostArray], tmp_path: Path) -> CheckpointReader:
        storage = np.arange(60, dtype=np.float32)
        codes = {}
        for name, array in expected.items():
            codes[name] = tensor(
                "0",
                array.shape,
                size=60,
                offset=int(array.flat[0]) if array.size else 0,
                strides=tuple(step // 4 for step in array.strides),
            )
        write_archive(tmp_path / "x.bin", pickled(codes), {"0": storage.tobytes()})
        return TorchBinFile(tmp_path / "x.bin")
