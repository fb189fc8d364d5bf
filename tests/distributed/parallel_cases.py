"""What one process and several train alike: the model, its data and the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np

from glm3sdk import GenerationConfig, Message, load_service
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, Place
from glm3sdk.errors import NonFiniteLossError, RuntimeFailureError
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.ports.model_runtime import DecodeSession
from glm3sdk.ports.training import AdamW, StatePart, TokenBatch, TrainingPlan, TrainingSession
from glm3sdk.testing.random_checkpoint import random_weights

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=4,
    kv_channels=16,
    multi_query_group_num=2,
    padded_vocab_size=256,
    seq_length=64,
)
WEIGHTS = random_weights(CONFIG)
STEPS, MIDDLE = 20, 10
RATE = 1e-3
# Keys' biases have no gradient where rope does not turn: with a usual epsilon, AdamW would
# make steps of what is rounding alone.
OPTIMIZER = AdamW(epsilon=1e-5)
# One layer is split by its outputs, the other by its inputs.
LORA = Lora(rank=4, alpha=8.0, dropout=0.2, targets=("query_key_value", "dense_4h_to_h"))
TRAINED = {
    "full": TrainingPlan(optimizer=OPTIMIZER),
    "few": TrainingPlan(optimizer=OPTIMIZER),
    "lora": TrainingPlan(optimizer=OPTIMIZER, lora=LORA),
    "recomputed": TrainingPlan(optimizer=OPTIMIZER, recompute=True),
}
# Fewer of them take fewer graphs to compile, which is what these tests spend their time on.
MICRO_BATCHES = {"full": 4, "few": 2, "lora": 2, "recomputed": 1}
EVALUATED = ("full", "lora")
WHOLE = ("full", "few")
# (data, tensor): the groups of the second are on two ranks each.
DECODED = ((1, 2), (1, 4))
PROMPT = [7, 100, 31, 250, 8]

DATA_2 = ParallelPlan(data=2)
DATA_2_SHARDED = ParallelPlan(data=2, optimizer_shard=True)
TENSOR_2 = ParallelPlan(tensor=2)
BOTH = ParallelPlan(data=2, tensor=2)
BOTH_SHARDED = ParallelPlan(data=2, tensor=2, optimizer_shard=True)
# More ranks than key/value groups.
TENSOR_4 = ParallelPlan(tensor=4)

CASES = {
    2: [
        (DATA_2, "full"),
        (DATA_2_SHARDED, "full"),
        (DATA_2_SHARDED, "lora"),
        (TENSOR_2, "full"),
        (TENSOR_2, "lora"),
        (TENSOR_2, "recomputed"),
    ],
    4: [
        (BOTH, "few"),
        (BOTH_SHARDED, "few"),
        (TENSOR_4, "few"),
    ],
}
"""What is trained how, by the number of processes: each number is started once.

With one data rank, sharding the optimizer changes no share (tests/domain/test_tensor_shares.py).
"""


def case_name(plan: ParallelPlan, kind: str = "") -> str:
    sharded = "_sharded" if plan.optimizer_shard else ""
    return f"data{plan.data}_tensor{plan.tensor}{sharded}" + (f"_{kind}" if kind else "")


@attrs.frozen(eq=False)
class ArrayReader:
    """A `CheckpointReader` of arrays that counts what is read."""

    arrays: Mapping[str, np.ndarray]
    read_bytes: dict[str, int] = attrs.field(factory=dict)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        value = self.arrays[name][index].copy()
        self.read_bytes[name] = self.read_bytes.get(name, 0) + value.nbytes
        return value


def batch(seed: int) -> TokenBatch:
    """Two sequences; how many of their labels count differs from batch to batch."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CONFIG.padded_vocab_size, (2, 13), np.int32)
    hidden = rng.random((2, 12)) < 0.2 + 0.15 * (seed % 4)
    return TokenBatch(ids[:, :-1], np.where(hidden, -100, ids[:, 1:]).astype(np.int32))


def micro_batches(kind: str, step: int) -> list[TokenBatch]:
    """All of a step's; they come again, so that there is something to learn."""
    count = MICRO_BATCHES[kind]
    return [batch(step % 2 * count + index) for index in range(count)]


def train(session: TrainingSession, place: Place, kind: str, steps: range) -> np.ndarray:
    """What each step measures: loss, counted labels, norm."""
    found = [
        session.train_step(
            place.micro_batches(micro_batches(kind, step)),
            learning_rate=RATE,
            loss_scale=float(2 ** (step % 3)),
            dropout_seed=1000 + step,
        )
        for step in steps
    ]
    return np.array([attrs.astuple(metrics) for metrics in found])


def evaluate(session: TrainingSession, place: Place, kind: str) -> np.ndarray:
    """Loss and labels of some batches, of each data rank its own, the same all in all."""
    if kind not in EVALUATED:
        return np.zeros(2)
    parts = place.micro_batches(micro_batches(kind, 0))
    found = [session.eval_loss(part) for part in parts]
    tokens = sum(metrics.tokens for metrics in found)
    return np.array([sum(part.loss * part.tokens for part in found) / tokens, tokens])


def state(session: TrainingSession) -> dict[str, np.ndarray]:
    """All of the state that this process stores."""
    found = {}
    for part in StatePart:
        specs = session.specs(part)
        for name, value in session.state(part):
            assert specs[name] == TensorSpec(value.shape, value.dtype.name), name
            found[name] = value
    return found


def overflow(
    session: TrainingSession, place: Place, middle: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Whether a step raises, and changes nothing, where one rank has weights that are NaN."""
    spoilt = place.rank_id == 1
    weights = {name: np.full_like(w, np.nan) if spoilt else w for name, w in WEIGHTS.items()}
    session.restore(ArrayReader({**middle, **weights}))
    before = state(session)
    try:
        train(session, place, "few", range(1))
    except NonFiniteLossError:
        after = state(session)
        return np.array([before[name].tobytes() == after[name].tobytes() for name in before])
    return np.array([False])


def decode(session: DecodeSession) -> dict[str, np.ndarray]:
    """Greedy tokens and their logits: a prompt, a second one on its prefix, two slots at once."""
    logits = [session.prefill(0, PROMPT[:3], all_logits=True)]
    logits.append(session.prefill(0, PROMPT[3:])[None])
    session.copy(0, 1, 3)
    logits.append(session.prefill(1, [9, 200])[None])
    ids = [int(logits[1].argmax()), int(logits[2].argmax())]
    tokens = [ids]
    for _ in range(6):
        logits.append(session.decode([0, 1], np.array(ids, np.int32)))
        ids = logits[-1].argmax(axis=-1).tolist()
        tokens.append(ids)
    return {"logits": np.concatenate(logits), "tokens": np.array(tokens)}


def disagree(session: DecodeSession, rank: int) -> np.ndarray:
    """Whether a step is refused for which the ranks were given different tokens."""
    try:
        session.decode([0], [rank])
    except RuntimeFailureError as exc:
        return np.array(["different tokens" in str(exc), session.length(0) > 0])
    return np.array([False])


def chat(**options: int) -> np.ndarray:
    """A greedy and a sampled reply of the bundled model, as they are read."""
    with load_service("tiny", max_seq_length=256, **options) as service:
        replies = [
            service.chat([Message.user("你好")], config)
            for config in (
                GenerationConfig(do_sample=False, max_new_tokens=12),
                GenerationConfig(seed=5, max_new_tokens=6),
            )
        ]
    return np.array([reply.content for reply in replies])


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **arrays)
