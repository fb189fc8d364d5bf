"""The contract that glm3sdk ships, passed by this runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from glm3sdk_numpy import load_numpy_runtime

from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import UnsupportedOptionError
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.testing import ModelRuntimeContract, write_random_checkpoint

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=40,
    seq_length=16,
)


def load(folder: Path, dtype: str | None = None) -> ModelRuntime:
    """Random weights, loaded as glm3sdk would."""
    write_random_checkpoint(folder, CONFIG)
    return load_numpy_runtime(
        config=CONFIG,
        checkpoint=HuggingFaceDirectory(folder),
        dtype=dtype,
        device_id=0,
        max_device_memory=None,
    )


class TestNumpyRuntime(ModelRuntimeContract):
    """Every test of the contract."""

    @pytest.fixture
    def runtime(self, tmp_path: Path) -> ModelRuntime:
        """A loaded runtime."""
        return load(tmp_path)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    """Silently computing in another one would be worse."""
    with pytest.raises(UnsupportedOptionError, match="float16"):
        load(tmp_path, dtype="float16")
