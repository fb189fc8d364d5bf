from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.lora import LINEAR_LAYERS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.ports.training import TrainingPlan, TrainingSession
from glm3sdk.testing import ScriptedTraining, TrainingContract, write_random_checkpoint
from glm3sdk.testing.training_contract import save_training

CONFIG = Glm3Config(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=24,
    seq_length=16,
)


class TestScriptedTraining(TrainingContract):
    @pytest.fixture
    def session(self) -> TrainingSession:
        return ScriptedTraining(self.vocab_size)


class TestScriptedTrainingWithDropout(TrainingContract):
    drops = True

    @pytest.fixture
    def session(self) -> TrainingSession:
        return ScriptedTraining(self.vocab_size, dropout=0.3)


@attrs.frozen
class Started:
    """One session for all tests of a class, for a session compiles its graphs."""

    runtime: MindSporeRuntime
    plan: TrainingPlan
    session: TrainingSession
    start: CheckpointReader

    def restored(self) -> TrainingSession:
        self.session.restore(self.start)
        return self.session

    def another(self) -> TrainingSession:
        return self.runtime.start_training(plan=self.plan)


@contextmanager
def started(folder: Path, plan: TrainingPlan) -> Iterator[Started]:
    write_random_checkpoint(folder, CONFIG)
    checkpoint = HuggingFaceDirectory(folder)
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=checkpoint, profile=CPU)
    session = runtime.start_training(plan=plan)
    yield Started(runtime, plan, session, save_training(session))
    session.close()
    runtime.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with started(tmp_path_factory.mktemp("full"), TrainingPlan()) as found:
        yield found


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    adapter = Lora(rank=2, alpha=8, dropout=0.3, targets=LINEAR_LAYERS)
    with started(tmp_path_factory.mktemp("lora"), TrainingPlan(lora=adapter)) as found:
        yield found


class TestMindSporeTraining(TrainingContract):
    @pytest.fixture
    def session(self, full: Started) -> TrainingSession:
        return full.restored()

    @pytest.fixture
    def disposable(self, full: Started) -> TrainingSession:
        return full.another()


class TestMindSporeLora(TrainingContract):
    drops = True

    @pytest.fixture
    def session(self, lora: Started) -> TrainingSession:
        return lora.restored()

    @pytest.fixture
    def disposable(self, lora: Started) -> TrainingSession:
        return lora.another()
