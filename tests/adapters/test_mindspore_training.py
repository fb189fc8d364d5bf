from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from reference.glm3_numpy import forward

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.lora import LINEAR_LAYERS, Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidDatasetError, NonFiniteLossError, ServiceClosedError
from glm3sdk.ports.training import AdamW, StatePart, TokenBatch, TrainingPlan, TrainingSession
from glm3sdk.services.adapters import MergedCheckpoint
from glm3sdk.testing.random_checkpoint import random_weights, write_random_checkpoint
from glm3sdk.testing.training_contract import save_training

CONFIG = Glm3Config(
    num_layers=2,
    hidden_size=12,
    ffn_hidden_size=8,
    num_attention_heads=2,
    kv_channels=8,
    multi_query_group_num=1,
    padded_vocab_size=24,
    seq_length=32,
    rope_ratio=50.0,
)
RATE = 1e-3
PLAIN = AdamW(weight_decay=0.0, clip_norm=None)


def batch(rows: int = 4, length: int = 6, seed: int = 0) -> TokenBatch:
    """Random ids whose labels are the following ids, some of them masked."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CONFIG.padded_vocab_size, (rows, length + 1))
    labels = ids[:, 1:].copy()
    labels[rng.random(labels.shape) < 0.3] = -100
    labels[:, 0] = ids[:, 1]
    return TokenBatch(ids[:, :-1], labels)


def half(whole: TokenBatch, rows: slice) -> TokenBatch:
    return TokenBatch(whole.input_ids[rows], whole.labels[rows])


BATCH = batch()


def oracle_loss(weights: Mapping[str, np.ndarray], data: TokenBatch) -> float:
    """Mean over the counted labels, in float64."""
    losses = []
    for ids, labels in zip(data.input_ids, data.labels, strict=True):
        logits = forward(CONFIG, weights, ids)
        top = logits.max(axis=-1, keepdims=True)
        scores = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        losses += [-row[label] for row, label in zip(scores, labels, strict=True) if label >= 0]
    return float(np.mean(losses))


def held_by(session: TrainingSession) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in session.state(StatePart.WEIGHTS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder, CONFIG)
    return folder


def load(folder: Path) -> MindSporeRuntime:
    return MindSporeRuntime(config=CONFIG, checkpoint=HuggingFaceDirectory(folder), profile=CPU)


def step(
    folder: Path, *batches: TokenBatch, rate: float = RATE, **constants: float | None
) -> dict[str, np.ndarray]:
    """The weights after one step from the checkpoint's."""
    runtime = load(folder)
    session = runtime.start_training(plan=TrainingPlan(optimizer=AdamW(**constants)))
    session.train_step(batches, learning_rate=rate)
    weights = held_by(session)
    session.close()
    runtime.close()
    return weights


WEIGHTS = random_weights(CONFIG)
# float32 logits reach 4 and are sums of a dozen products: each is off by less than 1e-5.
LOSS_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Iterator[MindSporeRuntime]:
    runtime = load(folder)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def untrained(runtime: MindSporeRuntime) -> Iterator[TrainingSession]:
    """A session for tests that leave the weights as they are."""
    session = runtime.start_training(plan=TrainingPlan(optimizer=PLAIN))
    yield session
    session.close()


@pytest.fixture(scope="module")
def stepped(folder: Path) -> dict[str, np.ndarray]:
    return step(folder, BATCH, weight_decay=0.0, clip_norm=None)


def test_the_loss_is_the_mean_cross_entropy_of_the_counted_labels(
    untrained: TrainingSession,
) -> None:
    metrics = untrained.eval_loss(BATCH)
    assert metrics.tokens == np.count_nonzero(BATCH.labels >= 0) < BATCH.labels.size
    assert metrics.loss == pytest.approx(oracle_loss(WEIGHTS, BATCH), abs=LOSS_TOLERANCE)


def test_padding_on_the_right_changes_no_loss(untrained: TrainingSession) -> None:
    padded = TokenBatch(
        np.pad(BATCH.input_ids, ((0, 0), (0, 3))),
        np.pad(BATCH.labels, ((0, 0), (0, 3)), constant_values=-100),
    )
    expected = untrained.eval_loss(BATCH)
    metrics = untrained.eval_loss(padded)
    assert metrics.tokens == expected.tokens
    assert metrics.loss == pytest.approx(expected.loss, abs=LOSS_TOLERANCE)


# A weight of each kind, and entries that the batch's tokens reach.
CHECKED = [
    ("transformer.embedding.word_embeddings.weight", (int(BATCH.input_ids[0, 0]), 3)),
    ("transformer.encoder.layers.0.input_layernorm.weight", (5,)),
    ("transformer.encoder.layers.0.self_attention.query_key_value.weight", (1, 2)),  # query
    ("transformer.encoder.layers.1.self_attention.query_key_value.weight", (17, 4)),  # key
    ("transformer.encoder.layers.1.self_attention.query_key_value.bias", (27,)),  # value
    ("transformer.encoder.layers.0.self_attention.dense.weight", (2, 9)),
    ("transformer.encoder.layers.1.mlp.dense_h_to_4h.weight", (11, 0)),
    ("transformer.encoder.layers.0.mlp.dense_4h_to_h.weight", (7, 7)),
    ("transformer.encoder.final_layernorm.weight", (1,)),
    ("transformer.output_layer.weight", (int(BATCH.labels[1, 0]), 6)),
]


@pytest.mark.parametrize(("name", "entry"), CHECKED)
def test_a_first_step_moves_a_weight_by_the_rate_against_its_gradient(
    stepped: dict[str, np.ndarray], name: str, entry: tuple[int, ...]
) -> None:
    losses = []
    for change in (1e-5, -1e-5):
        changed = {**WEIGHTS, name: WEIGHTS[name].astype(np.float64)}
        changed[name][entry] += change
        losses.append(oracle_loss(changed, BATCH))
    gradient = (losses[0] - losses[1]) / 2e-5
    # AdamW's first step is rate * g / (|g| + epsilon): the rate itself for any of these.
    assert abs(gradient) > 1e-4
    moved = stepped[name][entry] - WEIGHTS[name][entry]
    # float32 keeps seven digits of a weight around 1, and so four of a difference of 1e-3.
    assert moved == pytest.approx(-RATE * np.sign(gradient), rel=1e-3)


def test_the_gradient_norm_is_that_of_the_oracle(folder: Path) -> None:
    # A step along the gradient of length s lowers the loss by s * |gradient|. AdamW with a
    # large epsilon is such a step: rate * g / (|g| + epsilon) is rate / epsilon * g.
    runtime = load(folder)
    session = runtime.start_training(
        plan=TrainingPlan(optimizer=AdamW(weight_decay=0.0, clip_norm=None, epsilon=1e3))
    )
    norm = session.train_step([BATCH], learning_rate=1.0).grad_norm
    after = held_by(session)
    session.close()
    runtime.close()
    moved = np.sqrt(sum(np.sum((after[n] - w) ** 2.0) for n, w in WEIGHTS.items()))
    assert moved == pytest.approx(norm / 1e3, rel=1e-2)
    fall = oracle_loss(WEIGHTS, BATCH) - oracle_loss(after, BATCH)
    # To first order; the second is as large as the step, a thousandth of the norm.
    assert fall == pytest.approx(norm**2 / 1e3, rel=5e-2)


@pytest.fixture(scope="module")
def along_gradient(folder: Path) -> dict[str, np.ndarray]:
    """Weights after a step that grows with the gradient g: g / (|g| + 1)."""
    return step(folder, BATCH, rate=1.0, epsilon=1.0, weight_decay=0.0, clip_norm=None)


def test_micro_batches_weigh_their_labels_as_one_batch_does(
    folder: Path, along_gradient: dict[str, np.ndarray]
) -> None:
    parts = half(BATCH, slice(1)), half(BATCH, slice(1, None))
    assert len({np.count_nonzero(part.labels >= 0) / part.labels.size for part in parts}) == 2
    apart = step(folder, *parts, rate=1.0, epsilon=1.0, weight_decay=0.0, clip_norm=None)
    for name, together in along_gradient.items():
        # The same sums in another order, at weights and gradients around 1.
        np.testing.assert_allclose(apart[name], together, atol=2e-6, err_msg=name)


def test_decay_shrinks_matrices_and_neither_norms_nor_biases(
    folder: Path, stepped: dict[str, np.ndarray]
) -> None:
    decayed = step(folder, BATCH, weight_decay=0.5, clip_norm=None)
    for name, plain in stepped.items():
        matrix = WEIGHTS[name].ndim == 2
        expected = plain - (RATE * 0.5 * WEIGHTS[name] if matrix else 0)
        np.testing.assert_allclose(decayed[name], expected, atol=1e-6, err_msg=name)


def test_a_clipped_gradient_keeps_its_direction_and_shortens_the_step(
    folder: Path, along_gradient: dict[str, np.ndarray]
) -> None:
    clipped = step(folder, BATCH, rate=1.0, epsilon=1.0, weight_decay=0.0, clip_norm=0.1)
    moves = [
        np.concatenate([(after[name] - WEIGHTS[name]).ravel() for name in WEIGHTS]).astype(float)
        for after in (along_gradient, clipped)
    ]
    # g / (|g| + 1) is nearly g where |g| is at most 0.1.
    assert np.linalg.norm(moves[1]) == pytest.approx(0.1, rel=0.05)
    cosine = moves[0] @ moves[1] / np.linalg.norm(moves[0]) / np.linalg.norm(moves[1])
    assert cosine > 0.98


def test_a_loss_that_is_not_finite_raises_and_changes_no_weight(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, CONFIG, scale=1e30)
    runtime = load(tmp_path)
    session = runtime.start_training(plan=TrainingPlan())
    before = held_by(session)
    with pytest.raises(NonFiniteLossError, match="not finite"):
        session.train_step([BATCH], learning_rate=RATE)
    for name, array in session.state(StatePart.WEIGHTS):
        np.testing.assert_array_equal(array, before[name])
    session.close()
    runtime.close()


def test_a_step_without_a_label_is_refused(untrained: TrainingSession) -> None:
    masked = TokenBatch(BATCH.input_ids, np.full_like(BATCH.labels, -100))
    for batches in ([], [masked], [masked, masked]):
        with pytest.raises(InvalidDatasetError, match="every label"):
            untrained.train_step(batches, learning_rate=RATE)


def test_training_learns_a_batch_by_heart_compiles_once_and_decoding_sees_it(
    folder: Path,
) -> None:
    runtime = load(folder)
    decoding = runtime.start_decode(slots=1, max_seq_length=16)
    untrained = decoding.prefill(0, [1, 2, 3])
    training = runtime.start_training(plan=TrainingPlan(optimizer=AdamW(weight_decay=0.0)))
    training.train_step([BATCH, BATCH], learning_rate=1e-2)
    compiled = training.compiled_graphs
    for _ in range(150):
        metrics = training.train_step([BATCH, BATCH], learning_rate=1e-2)
    assert metrics.loss < 0.1
    assert training.compiled_graphs == compiled
    ids, labels = BATCH.input_ids[0], BATCH.labels[0]
    decoding.truncate(0, 0)
    rows = decoding.prefill(0, ids, all_logits=True)
    np.testing.assert_array_equal(rows.argmax(axis=-1)[labels >= 0], labels[labels >= 0])
    decoding.truncate(0, 0)
    assert np.abs(decoding.prefill(0, [1, 2, 3]) - untrained).max() > 0.1
    assert decoding.compiled_graphs == 1
    for session in (training, decoding, runtime):
        session.close()


def test_a_closed_training_session_frees_its_state_and_says_so(
    runtime: MindSporeRuntime,
) -> None:
    session = runtime.start_training(plan=TrainingPlan())
    held = [weakref.ref(moment) for moment in session._graphs._state.first]
    weights = session.state(StatePart.WEIGHTS)
    next(weights)
    session.close()
    session.close()
    assert all(reference() is None for reference in held)
    for call in (
        lambda: session.train_step([BATCH], learning_rate=RATE),
        lambda: session.eval_loss(BATCH),
        lambda: next(weights),
        lambda: session.compiled_graphs,
    ):
        with pytest.raises(ServiceClosedError, match="closed"):
            call()


LORA = Lora(rank=2, alpha=8.0, dropout=0.3, targets=LINEAR_LAYERS)
ADAPTER = TrainingPlan(optimizer=AdamW(weight_decay=0.0), lora=LORA)


def losses(session: TrainingSession, seeds: range, data: TokenBatch = BATCH) -> list[float]:
    """Of a step a seed."""
    return [
        session.train_step([data], learning_rate=3e-2, dropout_seed=seed).loss for seed in seeds
    ]


@pytest.fixture(scope="module")
def adapted(runtime: MindSporeRuntime) -> Iterator[tuple[float, TrainingSession]]:
    """The loss of a fresh adapter, and the session that then trained it."""
    session = runtime.start_training(plan=ADAPTER)
    first = session.eval_loss(BATCH).loss
    losses(session, range(20))
    yield first, session
    session.close()


def test_an_adapter_starts_as_nothing_and_learns(
    adapted: tuple[float, TrainingSession], untrained: TrainingSession
) -> None:
    first, session = adapted
    assert first == untrained.eval_loss(BATCH).loss
    assert session.eval_loss(BATCH).loss < first - 0.5


def test_training_an_adapter_leaves_every_weight(
    adapted: tuple[float, TrainingSession], untrained: TrainingSession
) -> None:
    pairs = LORA.pairs(CONFIG)
    assert len(pairs) == len(LINEAR_LAYERS) * CONFIG.num_layers
    names = {name for pair in pairs for name in (pair.name_a, pair.name_b)}
    assert set(adapted[1].specs(StatePart.WEIGHTS)) == names
    for name, array in untrained.state(StatePart.WEIGHTS):
        np.testing.assert_array_equal(array, WEIGHTS[name], err_msg=name)


def test_weights_with_the_adapter_merged_in_give_its_loss(
    folder: Path, adapted: tuple[float, TrainingSession]
) -> None:
    base = HuggingFaceDirectory(folder)
    merged = MergedCheckpoint(base, save_training(adapted[1]), lora=LORA, config=CONFIG)
    weights = {name: merged.read(name) for name in merged.tensors}
    loss = adapted[1].eval_loss(BATCH).loss
    assert loss == pytest.approx(oracle_loss(weights, BATCH), abs=LOSS_TOLERANCE)
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=merged, profile=CPU)
    session = runtime.start_decode(slots=1, max_seq_length=16)
    ids = BATCH.input_ids[0]
    logits = session.prefill(0, ids, all_logits=True)
    np.testing.assert_allclose(logits, forward(CONFIG, weights, ids), atol=LOSS_TOLERANCE)
    session.close()
    runtime.close()


def test_a_run_resumed_in_a_new_runtime_takes_the_same_steps(
    folder: Path, runtime: MindSporeRuntime
) -> None:
    session = runtime.start_training(plan=ADAPTER)
    losses(session, range(3))
    saved = save_training(session)
    expected = losses(session, range(3, 6))
    session.close()
    other = load(folder)
    resumed = other.start_training(plan=ADAPTER)
    resumed.restore(saved)
    # The same operations on the same numbers: not a bit may differ.
    assert losses(resumed, range(3, 6)) == expected
    assert losses(resumed, range(6, 7)) != losses(resumed, range(7, 8))
    resumed.close()
    other.close()


@pytest.mark.parametrize("lora", [None, Lora(rank=2, dropout=0.3)], ids=["full", "lora"])
def test_recomputed_activations_give_the_same_steps_at_every_length(
    folder: Path, lora: Lora | None
) -> None:
    found = []
    for recompute in (False, True):
        runtime = load(folder)
        session = runtime.start_training(plan=TrainingPlan(lora=lora, recompute=recompute))
        found.append(losses(session, range(2)) + losses(session, range(2, 4), batch(length=9)))
        session.close()
        runtime.close()
    # A kernel may sum in another order where its neighbours differ.
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
