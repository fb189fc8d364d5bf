from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
from services.fused_store import Fuse, FusedStore, Killed

from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import (
    CheckpointWriteError,
    InvalidCheckpointError,
    InvalidDatasetError,
    NonFiniteLossError,
)
from glm3sdk.ports.checkpoint_store import CheckpointStore, CheckpointWriter
from glm3sdk.ports.training import StatePart, TokenBatch, TrainingSession
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.finetune import (
    CheckpointSaved,
    Evaluated,
    FinetuneEvent,
    FinetuneResult,
    FinetuneRun,
    RunLimits,
    StepDone,
)
from glm3sdk.testing import MemoryCheckpointStore, ScriptedTraining
from glm3sdk.testing.training_contract import save_training

VOCAB = 12
RECORDS = 10
STEPS = 12


def record(seed: int) -> TokenBatch:
    ids = np.random.default_rng(seed).integers(0, VOCAB, (1, 7), np.int32)
    return TokenBatch(ids[:, :-1].copy(), ids[:, 1:].copy())


ORDER = DataOrder(records=RECORDS, batch_size=2, accumulate=2, seed=5)


class Records:
    """Shuffled records: 2 micro-batches of 2, so that 2.5 steps make an epoch."""

    def micro_batches(self, step: int) -> list[TokenBatch]:
        return [
            TokenBatch(
                *(
                    np.concatenate([getattr(record(int(i)), name) for i in indices])
                    for name in ("input_ids", "labels")
                )
            )
            for indices in ORDER.micro_batches(step)
        ]

    def epoch(self, step: int) -> float:
        return ORDER.epoch(step)


class Figures:
    """A sink in memory that goes on from a step, as the real ones do."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def start(self, first_step: int) -> Figures:
        self.rows = {step: row for step, row in self.rows.items() if step < first_step}
        return self

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.setdefault(step, {}).update(values)

    def close(self) -> None:
        pass

    @property
    def repeatable(self) -> dict[int, dict[str, float]]:
        """All figures but the speed."""
        return {
            step: {name: value for name, value in row.items() if name != "tokens_per_s"}
            for step, row in self.rows.items()
        }


LIMITS = RunLimits(total_steps=STEPS, checkpoint_every=4, keep=2, evaluate_every=3, seed=9)
SCHEDULE = Schedule(kind="cosine", peak=0.2, end=0.001, warmup_steps=3, total_steps=STEPS)
# Overflows twice at first; then grows again into an overflow, every three good steps.
SCALE = LossScale(scale=65536.0, factor=2.0, window=3)
OVERFLOWS_ABOVE = 20000.0


def session(**changes: float) -> ScriptedTraining:
    return ScriptedTraining(
        VOCAB, **{"dropout": 0.2, "overflows_above": OVERFLOWS_ABOVE, **changes}
    )


def compose(
    store: CheckpointStore, *, trained: TrainingSession | None = None, **changes: object
) -> FinetuneRun:
    settings: dict[str, object] = {
        "session": trained or session(),
        "data": Records(),
        "schedule": SCHEDULE,
        "limits": LIMITS,
        "store": store,
        "uri": "run",
        "eval_batches": lambda: iter([record(100), record(101)]),
        "loss_scale": SCALE,
        "files": {"config.json": b"{}"},
        "fingerprint": {"training.seed": 9},
    }
    return FinetuneRun(**{**settings, **changes})


@attrs.frozen
class Done:
    """What an uninterrupted run leaves."""

    result: FinetuneResult
    figures: Mapping[int, Mapping[str, float]]
    events: Sequence[FinetuneEvent]
    state: dict[str, bytes]
    result_files: tuple[str, ...]


def state_of(trained: TrainingSession) -> dict[str, bytes]:
    saved = save_training(trained)
    return {name: saved.read(name).tobytes() for name in saved.tensors}


@pytest.fixture(scope="module")
def whole() -> Done:
    store, trained, figures = MemoryCheckpointStore(), session(), Figures()
    events: list[FinetuneEvent] = []
    run = compose(store, trained=trained)
    result = run.run(sinks=[figures], on_event=events.append)
    files = store.open("run/result").files
    return Done(result, figures.repeatable, events, state_of(trained), files)


def test_the_loss_falls_and_the_result_holds_what_was_trained(whole: Done) -> None:
    losses = [row["loss"] for row in whole.figures.values() if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert whole.result == FinetuneResult(
        step=STEPS,
        finished=True,
        loss=losses[-1],
        eval_loss=whole.figures[STEPS]["eval_loss"],
        uri="run/result",
    )
    assert whole.result_files == ("config.json", "model.safetensors", "training_state.json")


def test_every_step_is_reported_then_its_evaluation_then_its_checkpoint(whole: Done) -> None:
    kinds = {StepDone: "step", Evaluated: "evaluated", CheckpointSaved: "saved"}
    told = [(event.step, kinds[type(event)]) for event in whole.events]
    expected = []
    for step in range(1, STEPS + 1):
        expected.append((step, "step"))
        # Once after the last step, though 3 divides 12; no checkpoint where the result goes.
        expected += [(step, "evaluated")] if step % 3 == 0 else []
        expected += [(step, "saved")] if step in (4, 8) else []
    assert told == expected
    assert [event.uri for event in whole.events if isinstance(event, CheckpointSaved)] == [
        "run/checkpoints/step-00000004",
        "run/checkpoints/step-00000008",
    ]


def test_the_figures_are_those_of_the_events(whole: Done) -> None:
    assert list(whole.figures) == list(range(1, STEPS + 1))
    for event in whole.events:
        row = whole.figures[event.step]
        if isinstance(event, Evaluated):
            assert row["eval_loss"] == event.loss
        elif isinstance(event, StepDone):
            assert row["learning_rate"] == event.learning_rate == SCHEDULE(event.step - 1)
            assert row["loss_scale"] == event.loss_scale
            assert event.tokens_per_s > 0
            measured = event.metrics and (event.metrics.loss, event.metrics.grad_norm)
            assert measured == (("loss" in row and (row["loss"], row["grad_norm"])) or None)


def test_an_overflow_skips_the_step_and_halves_the_scale(whole: Done) -> None:
    scales = [row["loss_scale"] for row in whole.figures.values()]
    assert scales == [65536, 32768, *[16384] * 3, 32768, *[16384] * 3, 32768, *[16384] * 2]
    skipped = [step for step, row in whole.figures.items() if "loss" not in row]
    assert skipped == [1, 2, 6, 10]
    assert [
        e.step for e in whole.events if isinstance(e, StepDone) and e.metrics is None
    ] == skipped


def test_a_skipped_step_takes_its_data_and_leaves_the_weights() -> None:
    asked: list[int] = []

    class Asked(Records):
        def micro_batches(self, step: int) -> list[TokenBatch]:
            asked.append(step)
            return super().micro_batches(step)

    trained = session()
    before = state_of(trained)
    limits = attrs.evolve(LIMITS, total_steps=2)
    result = compose(MemoryCheckpointStore(), trained=trained, data=Asked(), limits=limits).run()
    assert asked == [0, 1]
    assert state_of(trained) == before
    assert (result.step, result.finished, result.loss) == (2, True, None)


def test_dropout_has_a_seed_of_its_own_for_every_step_that_the_runs_seed_decides() -> None:
    def seeds(seed: int) -> list[int]:
        taken: list[int] = []

        class Seeds(ScriptedTraining):
            def train_step(self, *args: object, dropout_seed: int = 0, **kwargs: object) -> object:
                taken.append(dropout_seed)
                return super().train_step(*args, dropout_seed=dropout_seed, **kwargs)

        limits = attrs.evolve(LIMITS, seed=seed)
        compose(MemoryCheckpointStore(), trained=Seeds(VOCAB), limits=limits).run()
        return taken

    first = seeds(9)
    assert len(set(first)) == STEPS
    assert all(0 <= seed < 2**31 for seed in [*first, *seeds(2**32 - 1)])
    assert seeds(9) == first
    assert set(seeds(10)).isdisjoint(first)


class FusedSession(ScriptedTraining):
    fuse: Fuse

    def train_step(self, *args: object, **kwargs: object) -> object:
        self.fuse.pass_by("before step")
        metrics = super().train_step(*args, **kwargs)
        self.fuse.pass_by("after step")
        return metrics

    def eval_loss(self, batch: TokenBatch) -> object:
        self.fuse.pass_by("before evaluation")
        return super().eval_loss(batch)


class FusedFigures(Figures):
    fuse: Fuse

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self.fuse.pass_by("before record")
        super().record(step, values)


# Keeping one of three checkpoints passes a deletion as well.
KILLED_LIMITS = attrs.evolve(LIMITS, checkpoint_every=3, keep=1)


def attempt(store: CheckpointStore, figures: FusedFigures, fuse: Fuse) -> FusedSession:
    """A process that resumes what is there; each has a session and a run of its own."""
    trained = FusedSession(VOCAB, dropout=0.2, overflows_above=OVERFLOWS_ABOVE)
    trained.fuse = figures.fuse = fuse
    run = compose(FusedStore(store, fuse), trained=trained, limits=KILLED_LIMITS)
    figures.start(run.resume() + 1)
    run.run(sinks=[figures], on_event=lambda event: fuse.pass_by(type(event).__name__))
    return trained


def test_a_run_killed_anywhere_resumes_to_the_same_losses_and_weights_to_the_last_bit(
    whole: Done,
) -> None:
    fuse = Fuse()
    expected = state_of(attempt(MemoryCheckpointStore(), FusedFigures(), fuse))
    assert expected == whole.state
    places = set(fuse.places)
    assert {"before step", "before commit", "after commit", "before delete", "StepDone"} <= places
    assert len(fuse.places) > 100
    for place in range(len(fuse.places)):
        store, figures = MemoryCheckpointStore(), FusedFigures()
        with pytest.raises(Killed):
            attempt(store, figures, Fuse(place))
        trained = attempt(store, figures, Fuse())
        assert figures.repeatable == whole.figures, fuse.places[place]
        assert state_of(trained) == expected, fuse.places[place]
        assert len(store.list("run/checkpoints")) == 1


def test_a_run_killed_again_and_again_comes_to_the_same_end(whole: Done) -> None:
    store, figures, kills = MemoryCheckpointStore(), FusedFigures(), 0
    fuse_length = 31
    while True:
        try:
            trained = attempt(store, figures, Fuse(fuse_length))
        except Killed:
            kills += 1
            fuse_length += 7
            continue
        break
    assert kills > 2
    assert figures.repeatable == whole.figures
    assert state_of(trained) == whole.state


@pytest.mark.parametrize("stop_after", [1, 4, 5, 11])
def test_a_run_that_is_asked_to_stop_saves_and_resumes(whole: Done, stop_after: int) -> None:
    store, figures, events = MemoryCheckpointStore(), Figures(), []
    first = compose(store).run(
        sinks=[figures], on_event=events.append, should_stop=lambda: len(figures.rows) >= stop_after
    )
    uri = f"run/checkpoints/step-{stop_after:08d}"
    assert (first.step, first.finished, first.uri) == (stop_after, False, uri)
    # Once, also where a checkpoint was due at that step.
    saved = [event.uri for event in events if isinstance(event, CheckpointSaved)]
    assert saved.count(uri) == 1
    assert saved[-1] == uri
    assert "run/result" not in store.list("run")
    trained = session()
    second = compose(store, trained=trained)
    assert second.resume() == stop_after
    assert second.run(sinks=[figures]).uri == "run/result"
    assert figures.repeatable == whole.figures
    assert state_of(trained) == whole.state


def test_a_run_stopped_before_its_first_step_saves_nothing_and_says_so() -> None:
    store = MemoryCheckpointStore()
    result = compose(store).run(should_stop=lambda: True)
    assert (result.step, result.finished, result.uri) == (0, False, "run")
    assert store.list("run/checkpoints") == ()


def test_a_resumed_run_that_is_stopped_at_once_names_the_checkpoint_that_it_came_from() -> None:
    store = MemoryCheckpointStore()
    stop = iter([False, True])
    compose(store).run(should_stop=lambda: next(stop))
    run, events = compose(store), []
    run.resume()
    result = run.run(should_stop=lambda: True, on_event=events.append)
    assert (result.step, result.uri) == (1, "run/checkpoints/step-00000001")
    assert events == []


def test_a_stop_asked_for_in_the_last_step_finishes_the_run() -> None:
    steps = []
    result = compose(MemoryCheckpointStore()).run(
        on_event=steps.append, should_stop=lambda: len(steps) >= 100
    )
    assert result.finished


@pytest.mark.parametrize(("keep", "left"), [(1, [9]), (2, [6, 9]), (5, [3, 6, 9])])
def test_the_newest_checkpoints_stay(keep: int, left: list[int]) -> None:
    store = MemoryCheckpointStore()
    compose(store, limits=attrs.evolve(LIMITS, checkpoint_every=3, keep=keep)).run()
    assert store.list("run/checkpoints") == tuple(
        f"run/checkpoints/step-{step:08d}" for step in left
    )


def test_the_run_goes_on_when_an_old_checkpoint_cannot_be_removed(
    whole: Done, caplog: pytest.LogCaptureFixture
) -> None:
    class Sticky(MemoryCheckpointStore):
        def delete(self, uri: str) -> None:
            raise CheckpointWriteError(f"{uri} cannot be removed; see its permissions")

    store, figures = Sticky(), Figures()
    with caplog.at_level(logging.WARNING):
        compose(store, limits=attrs.evolve(LIMITS, keep=1)).run(sinks=[figures])
    assert figures.repeatable == whole.figures
    assert "step-00000004 cannot be removed" in caplog.text


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_serves_to_resume(whole: Done) -> None:
    class Full(MemoryCheckpointStore):
        def create(self, uri: str) -> CheckpointWriter:
            if uri.endswith("step-00000008"):
                raise CheckpointWriteError("no space left on device; free some space")
            return super().create(uri)

    store, figures = Full(), Figures()
    with pytest.raises(CheckpointWriteError, match="no space left"):
        compose(store).run(sinks=[figures])
    assert store.list("run/checkpoints") == ("run/checkpoints/step-00000004",)
    store.__class__ = MemoryCheckpointStore  # some space was freed
    run = compose(store)
    figures.start(run.resume() + 1)
    run.run(sinks=[figures])
    assert figures.repeatable == whole.figures


def test_the_evaluation_is_the_mean_over_all_counted_labels() -> None:
    batches = [record(100), record(101)]
    batches[1].labels[0, :4] = -100
    empty = TokenBatch(batches[0].input_ids, np.full_like(batches[0].labels, -100))
    trained = session()
    result = compose(
        MemoryCheckpointStore(),
        trained=trained,
        limits=attrs.evolve(LIMITS, evaluate_every=None),
        eval_batches=lambda: iter([*batches, empty]),
    ).run()
    losses = [trained.eval_loss(batch) for batch in batches]
    mean = sum(each.loss * each.tokens for each in losses) / sum(each.tokens for each in losses)
    assert result.eval_loss == pytest.approx(mean, rel=1e-12)
    with pytest.raises(InvalidDatasetError, match="no label of the evaluation data"):
        compose(MemoryCheckpointStore(), eval_batches=lambda: iter([empty])).run()


def test_without_evaluation_data_there_is_no_evaluation() -> None:
    events: list[FinetuneEvent] = []
    result = compose(MemoryCheckpointStore(), eval_batches=None).run(on_event=events.append)
    assert result.eval_loss is None
    assert not any(isinstance(event, Evaluated) for event in events)


class Bad(ScriptedTraining):
    """Its gradient is never finite from the third step on, whatever the scale."""

    steps = 0

    def train_step(self, *args: object, **kwargs: object) -> object:
        self.steps += 1
        if self.steps >= 3:
            raise NonFiniteLossError("the loss is nan")
        return super().train_step(*args, **kwargs)


def test_a_loss_that_is_not_finite_names_step_and_epoch() -> None:
    with pytest.raises(NonFiniteLossError, match=r"^step 3, epoch 1: the loss is nan"):
        compose(MemoryCheckpointStore(), trained=Bad(VOCAB), loss_scale=None).run()


def test_a_gradient_that_overflows_at_every_scale_is_an_error_in_the_end() -> None:
    events: list[FinetuneEvent] = []
    run = compose(MemoryCheckpointStore(), trained=Bad(VOCAB), loss_scale=LossScale(scale=8.0))
    # Skipped at 8, 4 and 2 (steps 3, 4, 5); 1 is no scale any more. Epochs are 2.5 steps.
    with pytest.raises(NonFiniteLossError, match=r"^step 6, epoch 3: "):
        run.run(on_event=events.append)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.loss_scale for event in steps] == [8, 8, 8, 4, 2]


def test_a_resumed_run_of_another_configuration_is_refused_by_the_names_of_its_keys() -> None:
    store = MemoryCheckpointStore()
    before = {"training.seed": 9, "lora.rank": 8, "gone": True, "columns": ["a", "b"]}
    stop = iter([False, True])
    compose(store, fingerprint=before).run(should_stop=lambda: next(stop))
    again = {"training.seed": 10, "lora.rank": 8, "columns": ["a", "b"], "new": 1}
    with pytest.raises(InvalidCheckpointError) as raised:
        compose(store, fingerprint=again).resume()
    message = str(raised.value)
    assert "training.seed was 9 and is 10" in message
    assert "gone was True and is None" in message
    assert "new was None and is 1" in message
    assert "lora.rank" not in message
    assert "columns" not in message
    assert compose(store, fingerprint=before).resume() == 1


def test_there_may_be_nothing_to_resume() -> None:
    assert compose(MemoryCheckpointStore()).resume() == 0


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def damaged(folder: Path, *steps: int, file: str) -> Callable[[], FinetuneRun]:
    """A run of checkpoints 3, 6 and 9 that stopped, of which some are damaged."""
    uri, seen = str(folder / "run"), []
    limits = attrs.evolve(LIMITS, checkpoint_every=3, keep=3)
    store = LocalCheckpointStore()
    compose(store, uri=uri, limits=limits).run(
        on_event=seen.append, should_stop=lambda: bool(seen) and seen[-1].step == 9
    )
    assert [Path(path).name for path in store.list(f"{uri}/checkpoints")] == [
        f"step-{step:08d}" for step in (3, 6, 9)
    ]
    for step in steps:
        flip(Path(uri) / "checkpoints" / f"step-{step:08d}" / file)
    return lambda: compose(store, uri=uri, limits=limits)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "training_state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_refused_and_the_newest_intact_one_is_named(
    tmp_path: Path, file: str
) -> None:
    again = damaged(tmp_path, 9, file=file)
    with pytest.raises(InvalidCheckpointError, match="newest checkpoint is damaged") as raised:
        again().resume()
    message = str(raised.value)
    assert f"Remove {tmp_path}/run/checkpoints/step-00000009 and resume" in message
    assert "step-00000006 is intact" in message
    LocalCheckpointStore().delete(f"{tmp_path}/run/checkpoints/step-00000009")
    assert again().resume() == 6


def test_several_damaged_checkpoints_are_all_named(tmp_path: Path) -> None:
    again = damaged(tmp_path, 6, 9, file="model.safetensors")
    with pytest.raises(InvalidCheckpointError) as raised:
        again().resume()
    root = f"{tmp_path}/run/checkpoints"
    assert f"Remove {root}/step-00000009, {root}/step-00000006 and" in str(raised.value)
    assert "step-00000003 is intact" in str(raised.value)


def test_where_no_checkpoint_is_intact_the_message_says_to_begin_again(tmp_path: Path) -> None:
    again = damaged(tmp_path, 3, 6, 9, file="optimizer.safetensors")
    with pytest.raises(InvalidCheckpointError, match="begin again with another output"):
        again().resume()


def test_a_checkpoint_that_is_no_runs_is_refused() -> None:
    store = MemoryCheckpointStore()
    for state in (b"no json", b"[]", b"{}", json.dumps({"step": 1, "eval_loss": None}).encode()):
        writer = store.create("run/checkpoints/step-00000001")
        writer.add_file("training_state.json", state)
        writer.commit()
        with pytest.raises(InvalidCheckpointError, match="not a run's state"):
            compose(store).resume()


def test_an_evaluation_loss_that_is_not_a_number_survives_a_checkpoint() -> None:
    class Unclear(ScriptedTraining):
        def eval_loss(self, batch: TokenBatch) -> object:
            return attrs.evolve(super().eval_loss(batch), loss=math.nan)

    store, seen = MemoryCheckpointStore(), []
    compose(store, trained=Unclear(VOCAB), loss_scale=None).run(
        on_event=seen.append, should_stop=lambda: len(seen) > 4
    )
    run = compose(store, trained=Unclear(VOCAB), loss_scale=None)
    run.resume()
    assert math.isnan(run.run(should_stop=lambda: True).eval_loss)


def test_the_remaining_time_is_the_latest_pace_without_the_first_steps_compilation() -> None:
    now = 0.0
    durations = iter([60.0, *[2.0] * 2, *[4.0] * 21])

    class Slow(ScriptedTraining):
        def train_step(self, *args: object, **kwargs: object) -> object:
            nonlocal now
            now += next(durations)
            return super().train_step(*args, **kwargs)

    events: list[FinetuneEvent] = []
    compose(
        MemoryCheckpointStore(),
        trained=Slow(VOCAB),
        limits=attrs.evolve(LIMITS, total_steps=24),
        eval_batches=None,
        clock=lambda: now,
    ).run(on_event=events.append)
    steps = [event for event in events if isinstance(event, StepDone)]
    remaining = [event.remaining_s for event in steps]
    assert remaining[0] == 60 * 23
    assert remaining[1:3] == [2 * 22, 2 * 21]
    assert remaining[3] == pytest.approx((2 + 2 + 4) / 3 * 20)
    # The pace is that of twenty steps: by the 23rd, the two quick ones are forgotten.
    assert remaining[22:] == [4 * 1, 0]
    # 2 micro-batches of 2 x 6 tokens.
    assert steps[1].tokens_per_s == pytest.approx(24 / 2)


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    store = MemoryCheckpointStore()
    trained = session()
    compose(store, trained=trained, limits=attrs.evolve(LIMITS, total_steps=5)).run()
    checkpoint = store.open("run/checkpoints/step-00000004")
    assert checkpoint.files == (
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "training_state.json",
    )
    names = {name for part in StatePart for name in trained.specs(part)}
    assert checkpoint.tensors.keys() == names
    assert json.loads(checkpoint.read_file("training_state.json")) == {
        "step": 4,
        "eval_loss": pytest.approx(2.5, abs=0.5),
        "loss_scale": {"scale": 16384.0, "factor": 2.0, "window": 3, "good_steps": 2},
        "fingerprint": {"training.seed": 9},
    }
    assert store.open("run/result").tensors.keys() == set(trained.specs(StatePart.WEIGHTS))
