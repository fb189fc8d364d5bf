"""`load_finetune` on several ranks, which are threads that train one table together."""

from __future__ import annotations

import csv
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from memory_storage import register_blobs
from services.shared_table import Board, SharedTable, spread_over
from table_runtime import VOCAB, TableRuntime, folded, table_run

from glm3sdk import FinetuneResult, load_finetune
from glm3sdk.adapters.cluster.environment import RESTART
from glm3sdk.bootstrap import disk_space, finetune
from glm3sdk.bootstrap.models import open_model
from glm3sdk.bootstrap.run_job import RunJob
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.errors import (
    CheckpointWriteError,
    InvalidCheckpointError,
    RuntimeFailureError,
    UserError,
)
from glm3sdk.ports.cluster_topology import ClusterTopology
from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.ports.training import StepMetrics, TokenBatch, TrainingPlan
from glm3sdk.services.run_ranks import RunRanks
from glm3sdk.testing import MemoryBlobStore, ThreadCluster

STEPS = 6


class SharedSmallTable(SharedTable):
    """As `SmallTable`, of several ranks."""

    def train_step(self, micro_batches: Sequence[TokenBatch], **settings: Any) -> StepMetrics:
        return super().train_step([folded(batch) for batch in micro_batches], **settings)

    def eval_loss(self, batch: TokenBatch) -> StepMetrics:
        return super().eval_loss(folded(batch))


class SharedRuntime:
    capabilities = RuntimeCapabilities(name="table", dtype="float32", training=True)

    def __init__(self, topology: ClusterTopology, board: Board) -> None:
        self._topology, self._board = topology, board

    def start_training(self, *, plan: TrainingPlan) -> SharedTable:
        return SharedSmallTable(
            VOCAB,
            topology=self._topology,
            board=self._board,
            optimizer=plan.optimizer,
            dropout=0.1,
        )

    def close(self) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of 6 steps over 6 records, of which an evaluation takes 5."""
    return {
        **table_run(tmp_path),
        "evaluation": {"every": 3, "max_records": 5},
        "training": {"epochs": 2, "batch_size": 1, "accumulate": 2},
        "checkpoints": {"every": 2, "keep": 1},
    }


def alone(settings: dict[str, Any], **run: Any) -> FinetuneResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "start_runtime", lambda *_, **__: TableRuntime())
        return load_finetune(settings).run(**run)


def together(
    settings: dict[str, Any], *, stop_at: int = STEPS + 1, **run: Any
) -> list[FinetuneResult]:
    """Run on two ranks; the second is asked to stop."""
    settings = {
        **settings,
        "training": {**settings["training"], "accumulate": 1},
        "parallel": {"data": 2},
    }
    plan, board, mine = ParallelPlan(data=2), Board(2), threading.local()

    def job(*_: object) -> RunJob:
        topology = mine.topology
        place = plan.place(topology.placement.rank_id)
        return RunJob(topology, place, RunRanks(topology=topology, spread=spread_over(2), data=2))

    def work(topology: ClusterTopology) -> FinetuneResult:
        mine.topology = topology
        seen: list[object] = []
        stops = topology.placement.rank_id == 1
        return load_finetune(settings).run(
            on_event=seen.append,
            should_stop=lambda: stops and any(event.step >= stop_at for event in seen),
            **run,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "run_job", job)
        patch.setattr(
            finetune, "start_runtime", lambda *_, **__: SharedRuntime(mine.topology, board)
        )
        return ThreadCluster(2, timeout_s=20).run(work)


def figures(output: str | Path) -> list[dict[str, Any]]:
    with (Path(output) / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    return [
        {name: pytest.approx(float(row[name]), rel=1e-9) if row[name] else None for name in names}
        for row in rows
    ]


def test_two_ranks_leave_what_one_leaves(settings: dict[str, Any], tmp_path: Path) -> None:
    results = together(settings)
    whole = {**settings, "output": str(tmp_path / "whole")}
    assert alone(whole).finished
    assert all(result.finished for result in results)
    assert len(set(results)) == 1
    output = Path(settings["output"])
    assert {path.name for path in output.iterdir()} == {
        *(path.name for path in (tmp_path / "whole").iterdir()),
        "shards",
    }
    assert [path.name for path in (output / "shards").iterdir()] == ["step-00000004"]
    assert figures(output) == figures(tmp_path / "whole")
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        one, other = (each / "result" / name for each in (output, tmp_path / "whole"))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_run_in_a_store_goes_on_in_one_process(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = MemoryBlobStore()
    register_blobs(monkeypatch, lambda: blobs)
    monkeypatch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
    given = {**settings, "output": "memory://bucket/run"}
    first, _ = together(given, stop_at=3)
    assert (first.step, first.uri) == (3, "memory://bucket/run/checkpoints/step-00000003")
    assert alone(given, resume=True).finished
    alone({**settings, "output": str(tmp_path / "whole")})
    metrics = blobs.stat("memory://bucket/run/metrics.csv")
    assert metrics is not None
    (tmp_path / "metrics.csv").write_bytes(blobs.read(metrics, 0, metrics.size))
    assert figures(tmp_path) == figures(tmp_path / "whole")


def test_a_job_that_was_started_again_resumes_and_does_not_begin_a_finished_run_anew(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together(settings, stop_at=3)
    with pytest.raises(
        InvalidCheckpointError, match=r"several ranks.*checkpoint merge \S+ merged .* --to hf"
    ):
        open_model(settings["output"])
    with pytest.raises((UserError, RuntimeFailureError), match="resume it"):
        together(settings)
    monkeypatch.setenv(RESTART, "1")
    assert [result.step for result in together(settings)] == [STEPS] * 2
    alone({**settings, "output": str(tmp_path / "whole")})
    assert figures(settings["output"]) == figures(tmp_path / "whole")
    # A rank may fail after the result is published.
    written = (Path(settings["output"]) / "result" / "manifest.json").stat().st_mtime_ns
    again = together(settings)
    assert [(result.step, result.finished) for result in again] == [(STEPS, True)] * 2
    assert (Path(settings["output"]) / "result" / "manifest.json").stat().st_mtime_ns == written


def test_an_adapter_in_parts_is_not_said_to_merge_into_a_model(settings: dict[str, Any]) -> None:
    together({**settings, "lora": {"rank": 2}}, stop_at=3)
    with pytest.raises(InvalidCheckpointError, match=r"several ranks.*resume the run to its end$"):
        open_model(settings["output"])


def test_room_is_asked_for_what_all_ranks_store(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = disk_space.shutil.disk_usage(Path(settings["output"]).parent)
    weights = 4 * VOCAB**2
    # Of checkpoints after 2 and 4 steps one is kept; then the result, in parts and whole.
    needed = max(2 * (3 * weights + 8), 3 * weights + 8 + 2 * weights)
    for free in (needed - 1, needed):
        monkeypatch.setattr(
            disk_space.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free)
        )
        if free < needed:
            with pytest.raises(CheckpointWriteError, match="free some"):
                together(settings)
        else:
            assert together(settings)[0].finished
