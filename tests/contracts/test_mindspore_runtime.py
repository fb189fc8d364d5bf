from __future__ import annotations

from collections.abc import Iterator

import pytest

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.model_runtime import DecodeSession, ModelRuntime
from glm3sdk.testing.random_checkpoint import write_random_checkpoint
from glm3sdk.testing.runtime_contract import ModelRuntimeContract

CONFIG = Glm3Config(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=40,
    seq_length=16,
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MindSporeRuntime]:
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder, CONFIG)
    checkpoint = HuggingFaceDirectory(folder)
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=checkpoint, profile=CPU)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def started(loaded: MindSporeRuntime) -> Iterator[DecodeSession]:
    session = loaded.start_decode(
        slots=ModelRuntimeContract.session_slots,
        max_seq_length=ModelRuntimeContract.max_seq_length,
    )
    yield session
    session.close()


class TestMindSporeRuntime(ModelRuntimeContract):
    @pytest.fixture
    def runtime(self, loaded: MindSporeRuntime) -> ModelRuntime:
        return loaded

    @pytest.fixture
    def session(self, started: DecodeSession) -> DecodeSession:
        # A session compiles its graphs: one serves all tests, and what an earlier one left
        # behind in the kv_cache makes this the harder trial.
        for slot in range(started.slots):
            started.truncate(slot, 0)
        return started
