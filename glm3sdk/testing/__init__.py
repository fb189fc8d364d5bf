"""For the tests of applications and plugins: fakes, contract tests, small checkpoints.

A fake passes the same contract as the real adapter. To check an adapter of your own,
subclass its contract in a test module and give it the fixture that it names:

    from glm3sdk.testing import TokenizerContract

    class TestMyTokenizer(TokenizerContract):
        @pytest.fixture
        def tokenizer(self):
            return MyTokenizer()

The contracts need pytest, which is imported with the first of them: the fakes run without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.finite_constraints import FiniteConstraints
from glm3sdk.testing.memory_blobs import MemoryBlobStore
from glm3sdk.testing.memory_store import MemoryCheckpointStore
from glm3sdk.testing.random_checkpoint import write_random_checkpoint
from glm3sdk.testing.scripted_runtime import ScriptedRuntime
from glm3sdk.testing.scripted_training import ScriptedTraining
from glm3sdk.testing.thread_cluster import ThreadCluster

if TYPE_CHECKING:
    from glm3sdk.testing.blob_contract import BlobStoreContract
    from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract
    from glm3sdk.testing.constraint_contract import ConstraintContract
    from glm3sdk.testing.metric_contract import MetricSinkContract
    from glm3sdk.testing.runtime_contract import ModelRuntimeContract
    from glm3sdk.testing.store_contract import CheckpointStoreContract
    from glm3sdk.testing.tokenizer_contract import TokenizerContract
    from glm3sdk.testing.topology_contract import ClusterTopologyContract
    from glm3sdk.testing.training_contract import TrainingContract

_CONTRACTS = {
    "BlobStoreContract": "glm3sdk.testing.blob_contract",
    "CheckpointReaderContract": "glm3sdk.testing.checkpoint_contract",
    "CheckpointStoreContract": "glm3sdk.testing.store_contract",
    "ClusterTopologyContract": "glm3sdk.testing.topology_contract",
    "ConstraintContract": "glm3sdk.testing.constraint_contract",
    "MetricSinkContract": "glm3sdk.testing.metric_contract",
    "ModelRuntimeContract": "glm3sdk.testing.runtime_contract",
    "TokenizerContract": "glm3sdk.testing.tokenizer_contract",
    "TrainingContract": "glm3sdk.testing.training_contract",
}

__all__ = [
    "BlobStoreContract",
    "CharacterTokenizer",
    "CheckpointReaderContract",
    "CheckpointStoreContract",
    "ClusterTopologyContract",
    "ConstraintContract",
    "FiniteConstraints",
    "MemoryBlobStore",
    "MemoryCheckpointStore",
    "MetricSinkContract",
    "ModelRuntimeContract",
    "ScriptedRuntime",
    "ScriptedTraining",
    "ThreadCluster",
    "TokenizerContract",
    "TrainingContract",
    "write_random_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _CONTRACTS:
        raise AttributeError(f"module 'glm3sdk.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_CONTRACTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
