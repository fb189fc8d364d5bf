"""A run of several ranks: the losses of one, whatever happens to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from services.fused_store import Fuse, FusedStore, Killed
from services.shared_table import Board, SharedTable, spread_over

from glm3sdk.adapters.storage.local import LocalCheckpointStore
from glm3sdk.adapters.storage.strategy_file import decode_strategy, encode_strategy
from glm3sdk.domain.training import LossScale, Schedule
from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError, RuntimeFailureError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointStore, CheckpointWriter, TensorSpec
from glm3sdk.ports.cluster_topology import ClusterTopology
from glm3sdk.ports.training import TokenBatch, TrainingSession
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.finetune import FinetuneResult, FinetuneRun, RunLimits
from glm3sdk.services.run_ranks import RunRanks
from glm3sdk.services.run_shards import StrategyFormat
from glm3sdk.testing import MemoryCheckpointStore, ScriptedTraining, ThreadCluster

VOCAB = 8
STEPS = 7
MICRO_BATCHES = 4
TIMEOUT_S = 20.0
LIMITS = RunLimits(total_steps=STEPS, checkpoint_every=2, keep=1, evaluate_every=3, seed=9)
SCHEDULE = Schedule(kind="cosine", peak=0.2, end=0.001, warmup_steps=2, total_steps=STEPS)
TABLE = {"dropout": 0.2, "overflows_above": 20000.0}
FORMAT = StrategyFormat(encode=encode_strategy, decode=decode_strategy)


def batch(indices: Iterable[int]) -> TokenBatch:
    rows = [np.random.default_rng(int(i)).integers(0, VOCAB, 7, np.int32) for i in indices]
    ids = np.stack(rows)
    return TokenBatch(ids[:, :-1].copy(), ids[:, 1:].copy())


@attrs.frozen
class Records:
    """Ten shuffled records, one to a micro-batch: an epoch ends in the middle of a step."""

    rank: int = 0
    world: int = 1

    @property
    def order(self) -> DataOrder:
        accumulate = MICRO_BATCHES // self.world
        return DataOrder(
            records=10,
            batch_size=1,
            accumulate=accumulate,
            rank=self.rank,
            world=self.world,
            seed=5,
        )

    def micro_batches(self, step: int) -> list[TokenBatch]:
        return [batch(indices) for indices in self.order.micro_batches(step)]

    def epoch(self, step: int) -> float:
        return self.order.epoch(step)

    def evaluated(self) -> Iterator[TokenBatch]:
        """Three batches; who has none left is given one without labels."""
        for first in range(0, 3, self.world):
            number = first + self.rank
            taken = batch([100 + number, 200])
            if number >= 3:
                taken.labels[:] = -100
            yield taken


class Figures:
    """A sink in memory that goes on from a step."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def start(self, first_step: int) -> None:
        self.rows = {step: row for step, row in self.rows.items() if step < first_step}

    def record(self, step: int, values: Mapping[str, float]) -> None:
        kept = {name: value for name, value in values.items() if name != "tokens_per_s"}
        self.rows.setdefault(step, {}).update(kept)

    def close(self) -> None:
        pass


def compose(store: CheckpointStore, session: TrainingSession, **settings: Any) -> FinetuneRun:
    given: dict[str, Any] = {
        "data": Records(),
        "eval_batches": Records().evaluated,
        "schedule": SCHEDULE,
        "limits": LIMITS,
        "uri": "run",
        "loss_scale": LossScale(scale=32768.0, window=3),
        "files": {"config.json": b"{}"},
        "fingerprint": {"training.seed": 9},
        "strategies": FORMAT,
    }
    return FinetuneRun(session=session, store=store, **{**given, **settings})


@attrs.define
class Job:
    """Ranks of one run, as threads.

    Attributes:
        stores: where each rank's checkpoints go: one for all, or not.
        figures: of the first rank.
        sessions: of each rank, after a run.
        errors: of each rank that failed.
    """

    stores: Callable[[int], CheckpointStore]
    figures: Figures = attrs.field(factory=Figures)
    sessions: list[ScriptedTraining] = attrs.field(factory=list)
    errors: dict[int, Exception] = attrs.field(factory=dict)

    def alone(self, *, stops: Callable[[int], bool] = lambda _: False) -> FinetuneResult:
        """Resume in one process what is there."""
        session = ScriptedTraining(VOCAB, **TABLE)
        self.sessions = [session]
        run = compose(self.stores(0), session)
        return self._finish(run, leads=True, should_stop=lambda: stops(0))

    def run(
        self, size: int, *, stops: Callable[[int], bool] = lambda _: False
    ) -> list[FinetuneResult]:
        """Resume on so many ranks what is there; an error comes when every rank has ended."""
        cluster, board = ThreadCluster(size, timeout_s=TIMEOUT_S), Board(size)
        sessions: dict[int, ScriptedTraining] = {}

        def work(topology: ClusterTopology) -> FinetuneResult | None:
            topology.initialize()
            rank = topology.placement.rank_id
            session = SharedTable(VOCAB, topology=topology, board=board, **TABLE)
            sessions[rank] = session
            data = Records(rank, size)
            run = compose(
                self.stores(rank),
                session,
                data=data,
                eval_batches=data.evaluated,
                ranks=RunRanks(topology=topology, spread=spread_over(size), data=size),
            )
            try:
                return self._finish(run, leads=rank == 0, should_stop=lambda: stops(rank))
            except Exception as exc:
                self.errors[rank] = exc
                return None

        self.errors = {}
        results = cluster.run(work)
        if self.errors:
            raise min(self.errors.values(), key=lambda exc: isinstance(exc, RuntimeFailureError))
        self.sessions = [sessions[rank] for rank in range(size)]
        return results

    def _finish(self, run: FinetuneRun, *, leads: bool, **settings: Any) -> FinetuneResult:
        step = run.resume()
        if not leads:
            return run.run(**settings)
        self.figures.start(step + 1)
        return run.run(sinks=[self.figures], **settings)


def state(session: ScriptedTraining) -> dict[str, bytes]:
    """All that a rank computes with, the same on every rank."""
    return {
        name: array.tobytes()
        for held in (session._weights, session._moments)
        for name, array in held.items()
    }


def assert_same_figures(found: Figures, expected: Figures) -> None:
    assert list(found.rows) == list(expected.rows)
    for step, row in expected.rows.items():
        # The evaluation's mean is summed in another order.
        assert found.rows[step].pop("eval_loss", 0) == pytest.approx(
            row.get("eval_loss", 0), rel=1e-12
        )
        assert found.rows[step] == {n: v for n, v in row.items() if n != "eval_loss"}, step


@pytest.fixture(scope="module")
def whole() -> tuple[Job, MemoryCheckpointStore]:
    """One process's run."""
    store = MemoryCheckpointStore()
    job = Job(lambda _: store)
    assert job.alone().finished
    losses = [row["loss"] for row in job.figures.rows.values() if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert len(losses) < STEPS, "a step must overflow"
    return job, store


def assert_ends_like(
    whole: tuple[Job, MemoryCheckpointStore], job: Job, store: CheckpointStore
) -> None:
    """The figures, the state, the result and what else is left are those of one process."""
    assert_same_figures(job.figures, whole[0].figures)
    for session in job.sessions:
        assert state(session) == state(whole[0].sessions[0])
    result, expected = store.open("run/result"), whole[1].open("run/result")
    assert result.tensors == expected.tensors
    assert set(result.files) == set(expected.files)
    for name in expected.tensors:
        assert result.read(name).tobytes() == expected.read(name).tobytes()
    kept = [uri.rsplit("/", 1)[1] for uri in store.list("run/checkpoints")]
    assert len(kept) == 1
    left = [uri.rsplit("/", 1)[1] for uri in store.list("run/shards")]
    if len(job.sessions) > 1:
        assert left == kept
    assert set(left) <= set(kept)


@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_train_like_one_and_leave_one_model(
    whole: tuple[Job, MemoryCheckpointStore], size: int
) -> None:
    store = MemoryCheckpointStore()
    job = Job(lambda _: store)
    results = job.run(size)
    assert set(results) == {results[0]}
    assert results[0].uri == "run/result"
    assert_ends_like(whole, job, store)


def test_each_rank_stores_its_own_rows_and_nothing_is_stored_twice() -> None:
    store = MemoryCheckpointStore()
    Job(lambda _: store).run(4, stops=stop_after(2))
    place = "run/shards/step-00000002"
    assert store.open(place).files == ("strategy.ckpt",)
    assert store.open("run/checkpoints/step-00000002").tensors == {}
    parts = [store.open(f"{place}/rank_{rank}") for rank in range(4)]
    shapes = [{name: spec.shape for name, spec in part.tensors.items()} for part in parts]
    rows = {"bigrams.weight": (2, VOCAB), "first_moment.bigrams.weight": (2, VOCAB)}
    assert shapes[1:] == [rows] * 3
    once = {"second_moment.bigrams.weight": (VOCAB, VOCAB), "beta1_power": (), "beta2_power": ()}
    assert shapes[0] == rows | once


def stop_after(step: int, *, rank: int = 1) -> Callable[[int], bool]:
    """Asks one rank alone to stop, when it is asked the step-th time."""
    asked = {"times": 0}

    def stops(asking: int) -> bool:
        if asking != rank:
            return False
        asked["times"] += 1
        return asked["times"] > step

    return stops


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_rank_is_asked_to_stop_all_stop_after_the_same_step(
    whole: tuple[Job, MemoryCheckpointStore], rank: int
) -> None:
    store = MemoryCheckpointStore()
    job = Job(lambda _: store)
    results = job.run(2, stops=stop_after(3, rank=rank))
    assert [(each.step, each.finished) for each in results] == [(3, False)] * 2
    assert {each.uri for each in results} == {"run/checkpoints/step-00000003"}
    job.run(2)
    assert_ends_like(whole, job, store)


@pytest.mark.parametrize("sizes", [(4, 2, 1), (1, 2, 4)], ids=["down", "up"])
def test_a_run_goes_on_over_any_number_of_ranks(
    whole: tuple[Job, MemoryCheckpointStore], sizes: tuple[int, ...]
) -> None:
    store = MemoryCheckpointStore()
    job = Job(lambda _: store)
    for size in sizes:
        stops = stop_after(99 if size == sizes[-1] else 2, rank=0)
        if size == 1:
            job.alone(stops=stops)
        else:
            job.run(size, stops=stops)
    assert_ends_like(whole, job, store)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_of_which_a_rank_is_killed_anywhere_resumes_to_the_same_end(
    whole: tuple[Job, MemoryCheckpointStore], rank: int
) -> None:
    def attempt(store: CheckpointStore, job: Job, fuse: Fuse) -> None:
        job.stores = lambda asking: FusedStore(store, fuse) if asking == rank else store
        job.run(2)

    fuse = Fuse()
    attempt(MemoryCheckpointStore(), Job(lambda _: MemoryCheckpointStore()), fuse)
    assert len(fuse.places) >= (50 if rank == 0 else 18)
    for place, what in enumerate(fuse.places):
        store = MemoryCheckpointStore()
        job = Job(lambda _: MemoryCheckpointStore())
        with pytest.raises(Killed):
            attempt(store, job, Fuse(place))
        if "run/result" in store.list("run"):
            continue  # the result is published: nothing is left to do
        attempt(store, job, Fuse())
        try:
            assert_ends_like(whole, job, store)
        except AssertionError as exc:
            raise AssertionError(what) from exc


@attrs.frozen
class FullStore:
    """Has no room for a part, or for what comes after its first tensor."""

    store: CheckpointStore
    part: str
    begun: bool

    def open(self, uri: str) -> Any:
        return self.store.open(uri)

    def create(self, uri: str) -> Any:
        full = uri.endswith(self.part)
        if full and not self.begun:
            raise CheckpointWriteError("no space left on device; free some space")
        return FullWriter(self.store.create(uri)) if full else self.store.create(uri)

    def list(self, uri: str) -> tuple[str, ...]:
        return self.store.list(uri)

    def delete(self, uri: str) -> None:
        self.store.delete(uri)


@attrs.frozen
class FullWriter:
    writer: CheckpointWriter

    def add_tensors(
        self, file: str, specs: Mapping[str, TensorSpec], values: Iterable[tuple[str, HostArray]]
    ) -> None:
        del file, specs
        for _ in values:
            raise CheckpointWriteError("no space left on device; free some space")

    def abort(self) -> None:
        self.writer.abort()


@pytest.mark.parametrize(
    ("part", "rank", "begun"),
    [
        ("step-00000004/rank_1", 1, False),
        ("step-00000004/rank_1", 1, True),
        ("step-00000004/rank_0", 0, True),
        ("shards/step-00000004", 0, False),
        ("checkpoints/step-00000004", 0, False),
    ],
)
def test_a_full_disk_on_one_rank_ends_all_and_the_checkpoint_before_serves_to_resume(
    whole: tuple[Job, MemoryCheckpointStore], part: str, rank: int, begun: bool
) -> None:
    store = MemoryCheckpointStore()
    job = Job(lambda asking: FullStore(store, part, begun) if asking == rank else store)
    with pytest.raises(CheckpointWriteError, match="no space left"):
        job.run(2)
    assert f"rank {rank} failed and said why" in str(job.errors[1 - rank])
    assert store.list("run/checkpoints") == ("run/checkpoints/step-00000002",)
    job.stores = lambda _: store  # some space was freed
    job.run(2)
    assert_ends_like(whole, job, store)


def test_nodes_that_share_no_directory_are_told_so_at_the_first_checkpoint() -> None:
    stores = [MemoryCheckpointStore(), MemoryCheckpointStore()]
    with pytest.raises(CheckpointWriteError, match=r"rank_1.*directory that all nodes share"):
        Job(lambda rank: stores[rank]).run(2)
    assert stores[0].list("run/checkpoints") == ()


def test_ranks_that_see_different_checkpoints_do_not_resume() -> None:
    stores = [MemoryCheckpointStore(), MemoryCheckpointStore()]
    Job(lambda _: stores[0]).run(2, stops=stop_after(3))
    with pytest.raises(InvalidCheckpointError, match="step 3 on rank 0, 0 on rank 1"):
        Job(lambda rank: stores[rank]).run(2)


def flip(path: Path) -> None:
    """Change one bit near the end of a file."""
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_part_is_found_by_any_number_of_ranks_and_an_intact_checkpoint_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int, size: int
) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalCheckpointStore()
    job = Job(lambda _: store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "LIMITS", attrs.evolve(LIMITS, keep=2))
        job.run(2, stops=stop_after(5))
    shards = tmp_path / "run" / "shards" / "step-00000005"
    flip(shards / f"rank_{damaged}" / f"checkpoint_{damaged}.safetensors")
    with pytest.raises(
        InvalidCheckpointError,
        match=r"newest checkpoint is damaged.*Remove run/checkpoints/step-00000005 and resume: "
        r"run/checkpoints/step-00000004 is intact",
    ):
        job.alone() if size == 1 else job.run(2)
    store.delete("run/checkpoints/step-00000005")
    assert job.run(2)[0].finished
    assert [path.name for path in (tmp_path / "run" / "shards").iterdir()] == ["step-00000006"]


def test_a_checkpoint_of_before_several_ranks_is_resumed() -> None:
    store = MemoryCheckpointStore()
    before = {"training.seed": 9, "training.accumulate": 4}
    after = {"training.seed": 9, "training.accumulate x parallel.data": 4}
    session = ScriptedTraining(VOCAB, **TABLE)
    asked = iter([False, True])
    compose(store, session, fingerprint=before).run(should_stop=lambda: next(asked))
    assert compose(store, ScriptedTraining(VOCAB), fingerprint=after).resume() == 1
    other = {**after, "training.accumulate x parallel.data": 8}
    with pytest.raises(InvalidCheckpointError, match=r"accumulate x parallel.data was 4 and is 8"):
        compose(store, ScriptedTraining(VOCAB), fingerprint=other).resume()
