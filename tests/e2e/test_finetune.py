"""Finetune runs on MindSpore: of the bundled model, and of one small enough to compile quickly."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from small_model import SMALL

from glm3sdk import (
    FinetuneResult,
    GenerationConfig,
    Message,
    StepDone,
    load_finetune,
    load_service,
)
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.mindspore.training import MindSporeTrainingSession
from glm3sdk.bootstrap import Finetune
from glm3sdk.bootstrap.models import model_directory
from glm3sdk.domain.lora import LINEAR_LAYERS
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.testing import write_random_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=40)

GOODS = ("上衣", "裤子", "裙子", "外套", "毛衣", "衬衫", "风衣", "卫衣")
STYLES = ("简约", "复古")
# Sixteen records written for this test, each with an answer of its own.
RECORDS = [
    {"content": f"类型#{goods}*风格#{style}", "summary": f"{style}的{goods}，第{number}款很百搭。"}
    for number, (style, goods) in enumerate((s, g) for s in STYLES for g in GOODS)
]


@attrs.frozen
class Trained:
    """A finished run.

    Attributes:
        run: it.
        result: how it ended.
        losses: of its steps.
        compiled: graphs after each step.
    """

    run: Finetune
    result: FinetuneResult
    losses: tuple[float, ...]
    compiled: tuple[int, ...]


def train(config: dict[str, Any], sessions: list[MindSporeTrainingSession]) -> Trained:
    losses: list[float] = []
    compiled: list[int] = []

    def on_event(event: object) -> None:
        if isinstance(event, StepDone):
            losses.append(event.metrics.loss)
            compiled.append(sessions[-1].compiled_graphs)

    run = load_finetune(config)
    result = run.run(on_event=on_event)
    return Trained(run, result, tuple(losses), tuple(compiled))


@pytest.fixture(scope="module")
def sessions() -> Iterator[list[MindSporeTrainingSession]]:
    """Every training session that is started, the newest last."""
    started: list[MindSporeTrainingSession] = []
    with pytest.MonkeyPatch.context() as patch:
        start = MindSporeRuntime.start_training

        def start_training(self: MindSporeRuntime, **settings: Any) -> MindSporeTrainingSession:
            started.append(start(self, **settings))
            return started[-1]

        patch.setattr(MindSporeRuntime, "start_training", start_training)
        yield started


def write_records(folder: Path, records: Sequence[dict[str, Any]]) -> str:
    path = folder / "records.jsonl"
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in records]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def prefilled_loss(runtime: ModelRuntime, run: Finetune, count: int) -> float:
    """The mean loss of the first records of a run's data, from a decode session's logits."""
    losses: list[float] = []
    session = runtime.start_decode(slots=1, max_seq_length=64)
    for index in range(count):
        example = run.train.example(index)
        session.truncate(0, 0)
        logits = session.prefill(0, example.input_ids, all_logits=True).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses += [
            -row[label] for row, label in zip(logs, example.labels, strict=True) if label >= 0
        ]
    session.close()
    return float(np.mean(losses))


# --- The bundled model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overfitted(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[MindSporeTrainingSession]
) -> Trained:
    folder = tmp_path_factory.mktemp("overfitted")
    config = {
        "output": str(folder / "run"),
        "train_data": {
            "path": write_records(folder, RECORDS),
            "format": "adgen-chat",
            "max_seq_length": 64,
        },
        "training": {"epochs": 28, "batch_size": 16},
        "optimizer": {"weight_decay": 0.0},
        "schedule": {"kind": "cosine", "learning_rate": 3e-3, "end": 3e-4, "warmup_steps": 2},
    }
    return train(config, sessions)


def test_sixteen_records_are_learned_by_heart(overfitted: Trained) -> None:
    assert overfitted.run.train.report.truncated == 0
    assert overfitted.losses[0] > 1
    assert overfitted.losses[-1] < 0.1


def test_nothing_is_compiled_after_the_first_step(overfitted: Trained) -> None:
    assert set(overfitted.compiled) == {overfitted.compiled[0]}
    assert overfitted.compiled[0] > 0


def test_the_trained_model_says_what_it_learned(overfitted: Trained) -> None:
    with load_service(overfitted.run.config.output, slots=4, max_seq_length=96) as service:
        replies = service.chat_batch([[Message.user(r["content"])] for r in RECORDS[:4]], GREEDY)
    assert [reply.content for reply in replies] == [r["summary"] for r in RECORDS[:4]]


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[MindSporeTrainingSession]
) -> Trained:
    folder = tmp_path_factory.mktemp("adapted")
    data = {
        "path": write_records(folder, RECORDS[:4]),
        "format": "adgen-chat",
        "max_seq_length": 64,
    }
    config = {
        "output": str(folder / "run"),
        "lora": {"rank": 8, "dropout": 0.1, "targets": list(LINEAR_LAYERS)},
        "train_data": data,
        "eval_data": data,
        "training": {"epochs": 14, "batch_size": 4},
        "optimizer": {"weight_decay": 0.0},
        "schedule": {"kind": "constant", "learning_rate": 1e-2},
    }
    return train(config, sessions)


def test_an_adapter_is_loaded_onto_its_base_as_it_was_trained(adapted: Trained) -> None:
    assert adapted.losses[-1] < adapted.losses[0] - 1
    with load_service(adapted.run.config.output, slots=1, max_seq_length=64) as service:
        assert service.chat([Message.user("你好")], GREEDY).content
        merged = prefilled_loss(service.runtime, adapted.run, 4)
    # W + BA is summed into one float32 matrix and not multiplied apart.
    assert merged == pytest.approx(adapted.result.eval_loss, abs=1e-3)
    assert merged < adapted.losses[0] - 1


# --- A small model ----------------------------------------------------------------------------

TWO_LAYERS = attrs.evolve(SMALL, num_layers=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model that reads with the bundled model's tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    write_random_checkpoint(folder, TWO_LAYERS)
    shutil.copy(model_directory("tiny") / "tokenizer.model", folder)
    return str(folder)


def test_the_loss_falls_on_real_advertisements(
    small: str, shared_data: Path, tmp_path: Path, sessions: list[MindSporeTrainingSession]
) -> None:
    lines = (shared_data / "advertisegen" / "dev.json").read_text(encoding="utf-8").splitlines()
    parts = {"train": lines[:64], "held_out": lines[64:80]}
    for name, part in parts.items():
        (tmp_path / f"{name}.json").write_text("\n".join(part), encoding="utf-8")
    # The reference's own layout and lengths: source, target, and one more.
    lengths = {"format": "adgen", "max_source_length": 64, "max_target_length": 63}
    config = {
        "output": str(tmp_path / "run"),
        "model": {"path": small},
        "train_data": {"path": str(tmp_path / "train.json"), **lengths},
        "eval_data": {"path": str(tmp_path / "held_out.json"), **lengths},
        "evaluation": {"every": 4},
        "training": {"epochs": 2, "batch_size": 4, "accumulate": 2, "seq_length": 128},
        "schedule": {"kind": "cosine", "learning_rate": 2e-2, "warmup_steps": 2},
    }
    trained = train(config, sessions)
    assert trained.run.train.report.taken == 64
    assert np.mean(trained.losses[-4:]) < np.mean(trained.losses[:4]) - 0.5
    held_out = [float(row["eval_loss"]) for row in figures(tmp_path / "run") if row["eval_loss"]]
    assert len(held_out) == 4
    assert held_out[-1] < held_out[0] - 0.2


def test_the_loss_falls_on_real_tool_conversations_and_masked_ones_are_named(
    small: str, shared_data: Path, tmp_path: Path, sessions: list[MindSporeTrainingSession]
) -> None:
    config = {
        "output": str(tmp_path / "run"),
        "model": {"path": small},
        "train_data": {
            "path": str(shared_data / "toolalpaca" / "tool_alpaca.jsonl"),
            "format": "multiturn",
            "max_seq_length": 512,
        },
        "training": {"epochs": 8},
        "schedule": {"kind": "constant", "learning_rate": 2e-2},
    }
    trained = train(config, sessions)
    report = trained.run.train.report
    # These tools' descriptions are long: few records reach their first answer in 512 tokens.
    assert report.taken == 14
    assert len(trained.run.train) == report.taken - report.masked > 0
    assert any("no token of this record is trained" in problem for problem in report.problems())
    assert trained.losses[-1] < trained.losses[0] - 0.5


_CHILD = """
import json, sys
from glm3sdk import StepDone, load_finetune
def tell(event):
    if isinstance(event, StepDone):
        print(event.step, flush=True)
load_finetune(json.loads(sys.argv[1])).run(on_event=tell)
"""


def figures(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def kill_after(step: int, config: dict[str, Any]) -> None:
    """Run in a process of its own that is killed in the step after `step`."""
    command = [sys.executable, "-c", _CHILD, json.dumps(config)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.strip() == str(step):
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_killed_between_checkpoints_resumes_with_the_same_losses(
    small: str, tmp_path: Path, kind: str
) -> None:
    data = {"path": write_records(tmp_path, RECORDS[:11]), "format": "adgen-chat"}
    config = {
        "model": {"path": small},
        "train_data": {**data, "max_seq_length": 64},
        "eval_data": {**data, "max_seq_length": 64},
        "evaluation": {"every": 5},
        "training": {"epochs": 4, "batch_size": 2, "accumulate": 1, "seed": 7},
        "schedule": {"kind": "cosine", "learning_rate": 1e-2, "warmup_steps": 3},
        "checkpoints": {"every": 4, "keep": 1},
    }
    if kind == "lora":
        config["lora"] = {"rank": 4, "dropout": 0.3, "targets": list(LINEAR_LAYERS)}
    load_finetune({**config, "output": str(tmp_path / "whole")}).run()
    config["output"] = str(tmp_path / "killed")
    # Between checkpoints, and epochs end in the middle of steps.
    moment = int(np.random.default_rng(len(kind)).integers(5, 20))
    kill_after(moment, config)
    assert len(figures(tmp_path / "killed")) >= moment
    steps: list[int] = []
    load_finetune(config).run(resume=True, on_event=lambda event: steps.append(event.step))
    # From the step after a checkpoint on, which the kill may have let pass or not.
    assert steps[0] % 4 == 1
    assert 1 < steps[0] <= moment + 1
    expected, found = figures(tmp_path / "whole"), figures(tmp_path / "killed")
    assert len(found) == len(expected) == 22
    for before, after in zip(expected, found, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate", "eval_loss"):
            assert bool(before[name]) == bool(after[name])
            if before[name]:
                assert float(after[name]) == pytest.approx(float(before[name]), abs=1e-6), before
