"""The contract of training sessions: tests that every adapter and every fake passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import attrs
import numpy as np
import pytest

from glm3sdk.domain.labels import IGNORED_LABEL
from glm3sdk.errors import (
    InvalidCheckpointError,
    InvalidDatasetError,
    NonFiniteLossError,
    ServiceClosedError,
)
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.ports.training import StatePart, StepMetrics, TokenBatch, TrainingSession
from glm3sdk.testing.memory_store import MemoryCheckpointStore

_SHAPE = (2, 8)
_MASKED = np.full(_SHAPE, IGNORED_LABEL, np.int32)


def save_training(session: TrainingSession) -> CheckpointReader:
    """A copy of both parts of a session's state, which `restore` takes."""
    store = MemoryCheckpointStore()
    writer = store.create("saved")
    for part in StatePart:
        writer.add_tensors(f"{part.value}.safetensors", session.specs(part), session.state(part))
    writer.commit()
    return store.open("saved")


class TrainingContract:
    """Derive a test class from it and give it a `session` fixture.

    Every batch has one shape, so a session compiles once. A session that serves all tests
    must be restored to where it started before each.

    Attributes:
        vocab_size: ids of the batches are below it.
        learning_rate: of the steps.
        drops: whether the session has dropout.
        tolerance: largest difference, absolute and relative, of a loss or a weight got in
            two ways; float32 sums in another order differ by 1e-6.
    """

    vocab_size = 16
    learning_rate = 1e-2
    drops = False
    tolerance = 1e-5

    @pytest.fixture
    def session(self) -> TrainingSession:
        """A session that has taken no step yet."""
        raise NotImplementedError("override the `session` fixture")

    @pytest.fixture
    def disposable(self, session: TrainingSession) -> TrainingSession:
        """A session that a test may close; override it where `session` serves all tests."""
        return session

    @pytest.fixture
    def batches(self) -> tuple[TokenBatch, TokenBatch]:
        """Two batches whose labels are the next ids; the second has more masked ones."""
        return self.batch(1, masked=0.2), self.batch(2, masked=0.6)

    def batch(self, seed: int, *, masked: float = 0.0) -> TokenBatch:
        """Random ids with the labels that follow them; the first of a row always counts."""
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, self.vocab_size, (_SHAPE[0], _SHAPE[1] + 1), np.int32)
        drop = rng.random(_SHAPE) < masked
        drop[:, 0] = False
        return TokenBatch(ids[:, :-1], np.where(drop, np.int32(IGNORED_LABEL), ids[:, 1:]))

    def step(self, session: TrainingSession, *batches: TokenBatch, seed: int = 0) -> StepMetrics:
        """Take a step."""
        return session.train_step(batches, learning_rate=self.learning_rate, dropout_seed=seed)

    def assert_same(self, first: CheckpointReader, second: CheckpointReader) -> None:
        """States that are equal to the last bit."""
        assert first.tensors == second.tensors
        for name in first.tensors:
            assert first.read(name).tobytes() == second.read(name).tobytes(), name

    def assert_close(self, first: CheckpointReader, second: CheckpointReader) -> None:
        """States of the same step computed in two ways."""
        for name in first.tensors:
            np.testing.assert_allclose(
                first.read(name).astype(np.float64),
                second.read(name).astype(np.float64),
                rtol=self.tolerance,
                atol=self.tolerance,
                err_msg=name,
            )

    def test_steps_lower_the_loss(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        before = session.eval_loss(batches[0]).loss
        for number in range(8):
            self.step(session, batches[0], seed=number)
        assert session.eval_loss(batches[0]).loss < before - 0.01

    def test_a_step_measures_the_mean_loss_over_the_counted_labels_of_all_its_batches(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        parts = [session.eval_loss(batch) for batch in batches]
        counted = [int(np.count_nonzero(batch.labels != IGNORED_LABEL)) for batch in batches]
        assert [part.tokens for part in parts] == counted
        assert counted[0] != counted[1]
        metrics = self.step(session, *batches)
        assert metrics.tokens == sum(counted)
        assert metrics.grad_norm > 0
        if not self.drops:
            mean = sum(part.loss * part.tokens for part in parts) / sum(counted)
            assert metrics.loss == pytest.approx(mean, abs=self.tolerance)

    def test_a_batch_taken_twice_in_one_step_is_that_batch(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        if self.drops:
            pytest.skip("with dropout, two micro-batches need not drop the same")
        start = save_training(session)
        once = self.step(session, batches[0])
        alone = save_training(session)
        session.restore(start)
        twice = self.step(session, batches[0], batches[0])
        assert twice.loss == pytest.approx(once.loss, abs=self.tolerance)
        assert twice.grad_norm == pytest.approx(once.grad_norm, rel=1e-4)
        self.assert_close(save_training(session), alone)

    def test_masked_labels_are_not_learned(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        start, batch = save_training(session), batches[1]
        self.step(session, batch)
        expected = save_training(session)
        session.restore(start)
        # A batch without labels weighs nothing, wherever it stands.
        empty = TokenBatch(batches[0].input_ids, _MASKED)
        metrics = self.step(session, batch, empty)
        assert metrics.tokens == np.count_nonzero(batch.labels != IGNORED_LABEL)
        self.assert_close(save_training(session), expected)

    def test_a_step_without_a_label_is_refused_and_changes_nothing(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        before = save_training(session)
        with pytest.raises(InvalidDatasetError):
            self.step(session, TokenBatch(batches[0].input_ids, _MASKED))
        self.assert_same(save_training(session), before)

    def test_evaluation_changes_nothing_and_repeats(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        self.step(session, batches[0])
        before = save_training(session)
        first = session.eval_loss(batches[1])
        assert session.eval_loss(batches[1]) == first
        assert first.grad_norm == 0
        self.assert_same(save_training(session), before)
        assert session.eval_loss(TokenBatch(batches[0].input_ids, _MASKED)).tokens == 0

    def test_a_loss_scale_changes_neither_loss_nor_step(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        start = save_training(session)
        plain = self.step(session, batches[0])
        expected = save_training(session)
        session.restore(start)
        scaled = session.train_step(
            batches[:1], learning_rate=self.learning_rate, loss_scale=1024.0, dropout_seed=0
        )
        assert scaled.loss == pytest.approx(plain.loss, abs=self.tolerance)
        assert scaled.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
        self.assert_close(save_training(session), expected)

    def test_a_rate_of_zero_leaves_the_weights(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        before = dict(session.state(StatePart.WEIGHTS))
        before = {name: array.copy() for name, array in before.items()}
        session.train_step(batches[:1], learning_rate=0.0)
        for name, array in session.state(StatePart.WEIGHTS):
            np.testing.assert_array_equal(array, before[name], err_msg=name)

    def test_a_seed_decides_what_is_dropped(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        # B of an adapter starts at zero: only after a step does dropout show in the loss.
        self.step(session, batches[0])
        start = save_training(session)
        first = self.step(session, batches[1], seed=5)
        after = save_training(session)
        session.restore(start)
        assert self.step(session, batches[1], seed=5) == first
        self.assert_same(save_training(session), after)
        session.restore(start)
        other = self.step(session, batches[1], seed=6)
        assert (other.loss != first.loss) == self.drops

    def test_the_state_is_what_its_specs_say(self, session: TrainingSession) -> None:
        names: list[str] = []
        for part in StatePart:
            specs = session.specs(part)
            for name, array in session.state(part):
                names.append(name)
                assert TensorSpec(array.shape, array.dtype.name) == specs[name]
            assert names[-len(specs) :] == list(specs)
        assert len(set(names)) == len(names)

    def test_a_restored_session_goes_on_as_if_never_interrupted(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        for number in range(2):
            self.step(session, batches[number], seed=number)
        middle = save_training(session)
        expected = [self.step(session, *batches, seed=number) for number in range(3)]
        end = save_training(session)
        session.restore(middle)
        self.assert_same(save_training(session), middle)
        assert [self.step(session, *batches, seed=number) for number in range(3)] == expected
        self.assert_same(save_training(session), end)

    @pytest.mark.parametrize("part", StatePart)
    def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch], part: StatePart
    ) -> None:
        start = save_training(session)
        name = list(session.specs(part))[-1]
        self.step(session, batches[0])
        before = save_training(session)
        for shape in (None, (1, 1, 1)):
            with pytest.raises(InvalidCheckpointError, match=name):
                session.restore(_Changed(start, name, shape))
        self.assert_same(save_training(session), before)

    def test_a_loss_that_is_not_finite_changes_nothing(
        self, session: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        names = frozenset(session.specs(StatePart.WEIGHTS))
        session.restore(_NotANumber(save_training(session), names))
        before = save_training(session)
        with pytest.raises(NonFiniteLossError):
            self.step(session, batches[0])
        self.assert_same(save_training(session), before)

    def test_a_closed_session_says_so(
        self, disposable: TrainingSession, batches: tuple[TokenBatch, TokenBatch]
    ) -> None:
        disposable.close()
        disposable.close()
        calls: list[Callable[[], object]] = [
            partial(self.step, disposable, batches[0]),
            partial(disposable.eval_loss, batches[0]),
            partial(disposable.specs, StatePart.WEIGHTS),
            lambda: next(disposable.state(StatePart.OPTIMIZER)),
        ]
        for call in calls:
            with pytest.raises(ServiceClosedError):
                call()


@attrs.frozen
class _Changed:
    """A checkpoint in which one tensor is missing or has another shape."""

    _saved: CheckpointReader
    _name: str
    _shape: tuple[int, ...] | None

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        specs = dict(self._saved.tensors)
        spec = specs.pop(self._name)
        if self._shape is not None:
            specs[self._name] = attrs.evolve(spec, shape=self._shape)
        return specs

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        return self._saved.read(name, index)


@attrs.frozen
class _NotANumber:
    """A checkpoint in which some tensors are NaN throughout."""

    _saved: CheckpointReader
    _names: frozenset[str]

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return self._saved.tensors

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        value = self._saved.read(name, index)
        return np.full_like(value, np.nan) if name in self._names else value
