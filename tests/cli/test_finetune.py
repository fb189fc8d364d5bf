"""`glm3 finetune`: what it shows and how it ends; one run of each kind is real."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli.terminal import Terminal
from click.testing import CliRunner, Result

from glm3sdk.cli.app import app
from glm3sdk.cli.finetune import until_stopped
from glm3sdk.config.loader import config_from_mapping
from glm3sdk.ports.training import StepMetrics
from glm3sdk.services.finetune import (
    CheckpointSaved,
    Evaluated,
    FinetuneEvent,
    FinetuneResult,
    StepDone,
)
from glm3sdk.services.preflight import Tally


def glm3(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)], prog_name="glm3")


def step(number: int, *, loss: float | None = 2.0) -> StepDone:
    return StepDone(
        step=number,
        total_steps=4,
        metrics=None if loss is None else StepMetrics(loss=loss, tokens=8, grad_norm=1.0),
        learning_rate=1e-3,
        tokens_per_s=100.0,
        remaining_s=90.0 * (4 - number),
        loss_scale=65536.0 if loss is None else None,
    )


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes the command play events instead of training, and end with a result."""

    def play(
        events: list[FinetuneEvent], *, leads: bool = True, alone: bool = True, **result: Any
    ) -> None:
        def run(*, resume: bool, on_event: Any, should_stop: Any) -> FinetuneResult:
            for event in events:
                on_event(event)
            values = {"step": 4, "finished": True, "loss": 2.0, "eval_loss": None, "uri": "r"}
            return FinetuneResult(**{**values, **result})

        values = {
            "output": str(tmp_path / "out put"),
            "train_data": {"path": "d.jsonl", "max_seq_length": 8},
            "training": {"log_every": 2},
        }
        played = SimpleNamespace(
            config=config_from_mapping(values),
            train=SimpleNamespace(report=Tally("d.jsonl", 8).report()),
            evaluation=None,
            total_steps=4,
            output=SimpleNamespace(figure=lambda _: None),
            run=run,
            leads=leads,
            alone=alone,
        )
        monkeypatch.setattr("glm3sdk.bootstrap.load_finetune", lambda *_, **__: played)

    return play


EVENTS = [
    *(step(number) for number in (1, 2, 3)),
    Evaluated(3, 1.5),
    CheckpointSaved(3, "checkpoints/3"),
    step(4),
]


def test_a_log_has_every_second_step_and_each_evaluation_and_checkpoint(plays: Any):
    plays(EVENTS)
    result = glm3("c.yaml")
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if line.startswith("step")] == [
        "step 2/4: loss 2.0000, learning rate 0.001, 100 tokens/s, 0:03:00 left",
        "step 3: eval loss 1.5000",
        "step 3: saved checkpoints/3",
        "step 4/4: loss 2.0000, learning rate 0.001, 100 tokens/s, 0:00:00 left",
    ]


def test_a_terminal_has_a_bar_with_the_last_figures(plays: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("glm3sdk.cli.finetune.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    plays(EVENTS)
    shown = glm3("c.yaml").stderr
    assert "step 3: saved checkpoints/3" in shown
    assert "4/4 loss 2.0000  eval loss 1.5000  lr 0.001  100 tokens/s  0:00:00 left" in shown


def test_a_skipped_step_says_why(plays: Any):
    plays([step(1, loss=None)])
    assert "step 1/4: skipped, the gradient overflowed at loss scale 65536" in glm3("c").stderr


def test_the_end_says_where_the_result_lies_and_how_to_chat(plays: Any):
    plays([], eval_loss=math.log(8), uri="out/result")
    lines = glm3("c.yaml").stdout.splitlines()
    assert lines[0] == "finished 4 steps: loss 2.0000, eval loss 2.0794, perplexity 8"
    assert lines[1] == "result: out/result"
    assert lines[-1].startswith("chat with it: glm3 chat --model '")  # the path has a blank
    assert lines[-1].endswith("/out put'")


def test_a_loss_without_a_finite_perplexity_is_no_failure(plays: Any):
    plays([], eval_loss=1e4)
    result = glm3("c.yaml", "--json")
    assert json.loads(result.stdout)["perplexity"] is None


def test_a_run_that_was_stopped_says_how_to_go_on(plays: Any):
    plays([], step=3, finished=False, uri="out/checkpoints/3")
    result = glm3("c.yaml", "--set", "train_data.path=my data.jsonl")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-2:] == [
        "stopped after step 3/4: out/checkpoints/3",
        "go on with: glm3 finetune c.yaml --set 'train_data.path=my data.jsonl' --resume",
    ]


def test_of_several_ranks_the_first_speaks(plays: Any):
    plays(EVENTS, leads=False, alone=False)
    result = glm3("c.yaml")
    assert (result.exit_code, result.output) == (0, "")
    plays(EVENTS, leads=False, alone=False, step=3, finished=False, uri="out/checkpoints/3")
    result = glm3("c.yaml", "--json")
    assert (result.exit_code, result.output) == (130, "")
    plays(EVENTS, alone=False, step=3, finished=False, uri="out/checkpoints/3")
    assert glm3("c.yaml").stderr.splitlines()[-1] == (
        "go on with: glm3 launch ... -- glm3 finetune c.yaml --resume"
    )


def test_json_of_a_stopped_run_names_the_checkpoint(plays: Any):
    plays([], step=3, finished=False, uri="out/checkpoints/3")
    values = json.loads(glm3("c.yaml", "--json").stdout)
    assert (values["finished"], values["result"]) == (False, None)
    assert values["checkpoint"] == "out/checkpoints/3"


def test_a_run_stopped_before_its_first_step_has_nothing_to_go_on_from(plays: Any):
    plays([], step=0, finished=False)
    result = glm3("c.yaml")
    assert result.exit_code == 130
    assert "nothing was saved" in result.stderr
    assert "--resume" not in result.stderr


def test_the_first_signal_asks_and_the_work_ends_by_itself():
    asked = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def work(should_stop: Any) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(10)
        return should_stop()

    assert until_stopped(work, on_stop=asked.set) is True
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_does_not_wait():
    asked, over = threading.Event(), threading.Event()

    def work(should_stop: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(60)

    with pytest.raises(KeyboardInterrupt):
        until_stopped(work, on_stop=asked.set)
    over.set()


def test_a_failure_of_the_work_is_raised():
    def work(should_stop: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        until_stopped(work, on_stop=lambda: None)


def test_every_problem_of_the_configuration_is_a_line():
    result = glm3("lora_tiny", "--set", "trainin.x=1", "--set", "training.epochs=0")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "glm3: error: --set trainin: unknown key; did you mean 'training'?",
        "glm3: error: --set training.epochs: must be at least 1, not 0",
    ]


def test_a_missing_data_file_is_one_line_and_exit_code_2():
    result = glm3("lora_tiny")
    assert result.exit_code == 2
    assert result.stderr.startswith("glm3: error: cannot read dataset /path/to/")


# Runs of the bundled model.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    path.write_text(f"{json.dumps({'messages': turns})}\n" * 8, encoding="utf-8")
    return path


def small(data: Path, **values: object) -> list[str]:
    settings = {
        "train_data.path": data,
        "train_data.format": "multiturn",
        "train_data.max_seq_length": 16,
        "training.seq_length": 16,
        "training.epochs": 100,
        "schedule.warmup_steps": 0,
        **values,
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def test_a_full_finetune_writes_a_model_and_its_figures(data: Path, tmp_path: Path):
    out = tmp_path / "run"
    settings = small(data, output=out, **{"training.max_steps": 4, "training.log_every": 1})
    result = glm3("finetune_tiny", *settings, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert (values["finished"], values["steps"]) == (True, 4)
    assert Path(values["plot"]).read_bytes().startswith(b"\x89PNG")
    assert len(Path(values["metrics"]).read_text(encoding="utf-8").splitlines()) == 5
    assert (Path(values["result"]) / "model.safetensors").is_file()
    again = glm3("finetune_tiny", *settings)
    assert again.exit_code == 2
    assert "holds a finished run" in again.stderr


def test_ctrl_c_ends_the_step_saves_a_checkpoint_and_leaves(data: Path, tmp_path: Path):
    settings = small(data, output="run", **{"training.max_steps": 100000})
    settings += ["--set", "training.epochs=1000000"]
    arguments = ["-m", "glm3sdk", "finetune", "lora_tiny", *settings]
    with Terminal(arguments, cwd=tmp_path, timeout_s=120) as terminal:
        terminal.until("loss")
        terminal.ctrl_c()
        terminal.until("stopping after this step")
        assert terminal.exit_code() == 130
        assert "--resume" in terminal.transcript
    assert [path.name[:5] for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-"]
