"""For the tests of applications and plugins: fakes, contract tests, small checkpoints.

A fake passes the same contract as the real adapter. To check an adapter of your own,
subclass its contract in a test module and give it the fixture that it names:

    from glm3sdk.testing import TokenizerContract

    class TestMyTokenizer(TokenizerContract):
        @pytest.fixture
        def tokenizer(self):
            return MyTokenizer()
"""

from __future__ import annotations

from glm3sdk.testing.blob_contract import BlobStoreContract
from glm3sdk.testing.checkpoint_contract import CheckpointReaderContract
from glm3sdk.testing.constraint_contract import ConstraintContract
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.finite_constraints import FiniteConstraints
from glm3sdk.testing.memory_blobs import MemoryBlobStore
from glm3sdk.testing.memory_store import MemoryCheckpointStore
from glm3sdk.testing.metric_contract import MetricSinkContract
from glm3sdk.testing.random_checkpoint import write_random_checkpoint
from glm3sdk.testing.runtime_contract import ModelRuntimeContract
from glm3sdk.testing.scripted_runtime import ScriptedRuntime
from glm3sdk.testing.scripted_training import ScriptedTraining
from glm3sdk.testing.store_contract import CheckpointStoreContract
from glm3sdk.testing.thread_cluster import ThreadCluster
from glm3sdk.testing.tokenizer_contract import TokenizerContract
from glm3sdk.testing.topology_contract import ClusterTopologyContract
from glm3sdk.testing.training_contract import TrainingContract

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
