from __future__ import annotations

from collections.abc import Iterator

import pytest

from glm3sdk.adapters.openvino.quantized import MemoryTensors
from glm3sdk.adapters.openvino.runtime import OpenVinoRuntime
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.testing.random_checkpoint import random_weights
from glm3sdk.testing.runtime_contract import ModelRuntimeContract

CONFIG = Glm3Config(
    num_layers=1,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=40,
    seq_length=16,
)


# Its kernels unpack weights to float32, and the graph of 4 bits is another one.
WITHOUT_VNNI = "flags : avx2 fma\n"


def load(dtype: str, cache_dtype: str = "f32", **options: object) -> OpenVinoRuntime:
    return OpenVinoRuntime(
        config=CONFIG,
        checkpoint=MemoryTensors(random_weights(CONFIG)),
        dtype=dtype,
        cache_dtype=cache_dtype,
        **options,
    )


class TestOpenVinoRuntime(ModelRuntimeContract):
    @pytest.fixture(scope="module", params=["float32", "int8", "int4", "int4 without VNNI"])
    @staticmethod
    def loaded(request: pytest.FixtureRequest) -> Iterator[OpenVinoRuntime]:
        dtype, _, old = request.param.partition(" ")
        runtime = load(dtype, **({"cpu_info": lambda: WITHOUT_VNNI} if old else {}))
        yield runtime
        runtime.close()

    @pytest.fixture
    def runtime(self, loaded: OpenVinoRuntime) -> ModelRuntime:
        return loaded


class TestOpenVinoRuntimeWithASmallCache(ModelRuntimeContract):
    # Keys and values have 8 bits once they are in the cache, and all of them while they are
    # first read: the same tokens in other pieces differ by what is rounded (0.006 here).
    tolerance = 2e-2
    distinct = 1e-1

    @pytest.fixture(scope="module")
    @staticmethod
    def small() -> Iterator[OpenVinoRuntime]:
        runtime = load("int8", "u8")
        yield runtime
        runtime.close()

    @pytest.fixture
    def runtime(self, small: OpenVinoRuntime) -> ModelRuntime:
        return small
