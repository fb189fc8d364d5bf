"""`glm3 launch -- glm3 finetune`: the losses of one process, also where a rank is killed."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from distributed.launched import Launched, gone
from safetensors.numpy import load_file
from small_model import SMALL

from glm3sdk import load_finetune
from glm3sdk.bootstrap.conversion import convert
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.bootstrap.resharding import merge_checkpoint
from glm3sdk.errors import InvalidParallelPlanError
from glm3sdk.testing import write_random_checkpoint

pytest.importorskip("mindspore")

# The first test waits for all jobs; the others look at what they left.
JOB_S = 120.0
pytestmark = pytest.mark.timeout(4 * JOB_S)
LOSS_TOLERANCE = 1e-4
SEED = 11

CONFIG = attrs.evolve(SMALL, seq_length=64)
RECORDS = [
    {"content": f"类型#{goods}*风格#{style}", "summary": f"{style}的{goods}很百搭。"}
    for style in ("简约", "复古")
    for goods in ("上衣", "裤子", "裙子", "外套", "毛衣", "衬衫")
]
STEPS, EVERY = 12, 4
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.3, "targets": ["query_key_value", "dense_4h_to_h"]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of 12 steps of 4 records, for one process; an epoch is 3 steps."""
    folder = tmp_path_factory.mktemp("finetune")
    write_random_checkpoint(folder / "model", CONFIG)
    shutil.copy(model_directory("tiny") / "tokenizer.model", folder / "model")
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS]
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    data = {
        "path": str(folder / "records.jsonl"),
        "format": "adgen-chat",
        "max_seq_length": 32,
    }
    return {
        "output": str(folder / "output"),
        "model": {"path": str(folder / "model")},
        "train_data": data,
        "eval_data": data,
        "evaluation": {"every": 5, "max_records": 5},
        "training": {
            "epochs": 4,
            "batch_size": 4,
            "log_every": 1,
            "seed": 7,
        },
        # With a usual epsilon, AdamW makes steps of the keys' biases, which are rounding alone.
        "optimizer": {"epsilon": 1e-5},
        "schedule": {"kind": "cosine", "learning_rate": 1e-2, "warmup_steps": 3},
        "checkpoints": {"every": EVERY, "keep": 2},
        "metrics": {"sinks": ["csv"]},
    }


def figures(output: str | Path) -> list[dict[str, str]]:
    with (Path(output) / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_figures(output: str | Path, expected: str | Path) -> None:
    found, wanted = figures(output), figures(expected)
    assert [row["step"] for row in found] == [str(step) for step in range(1, STEPS + 1)]
    for row, other in zip(found, wanted, strict=True):
        for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
            assert bool(row[name]) == bool(other[name])
            if row[name]:
                assert float(row[name]) == pytest.approx(float(other[name]), rel=LOSS_TOLERANCE), (
                    row["step"],
                    name,
                )


def weights(output: str | Path) -> dict[str, np.ndarray]:
    (file,) = (Path(output) / "result").glob("*.safetensors")
    return load_file(file)


def train_alone(settings: dict[str, Any], name: str, **changes: Any) -> str:
    output = f"{settings['output']}-{name}"
    load_finetune({**settings, "output": output, **changes}).run()
    return output


@pytest.fixture(scope="module")
def alone(settings: dict[str, Any]) -> str:
    """What one process leaves that trains every weight."""
    return train_alone(settings, "alone")


@pytest.fixture(scope="module")
def alone_lora(settings: dict[str, Any]) -> str:
    """What one process leaves that trains an adapter."""
    training = {**settings["training"], "batch_size": 2, "accumulate": 2}
    return train_alone(settings, "alone-lora", lora=LORA, training=training)


class Job:
    """`glm3 finetune` on several ranks."""

    def __init__(self, folder: Path, settings: dict[str, Any], *options: object) -> None:
        (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "glm3sdk", "finetune", "run.yaml"]
        self.launched = Launched(*options, "--", *command, directory=folder)
        self.folder, self.lines = folder, []
        self.pids: set[int] = set()

    def wait_for(self, text: str) -> None:
        """Read what ranks say until one says this."""
        assert self.launched.process.stdout
        for line in self.launched.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"nobody said {text!r}: {''.join(self.lines)}")

    def ranks(self) -> dict[int, int]:
        """The process of each rank, by what lies in /proc."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path("/proc", pid, "environ").read_bytes().split(b"\0")
                command = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
                here = os.readlink(f"/proc/{pid}/cwd") == str(self.folder)
            except OSError:
                continue
            if here and b"finetune" in command and b"launch" not in command:
                rank = next((e for e in environ if e.startswith(b"RANK_ID=")), None)
                if rank:
                    found[int(rank.removeprefix(b"RANK_ID="))] = int(pid)
        self.pids |= set(found.values())
        return found

    def finish(self) -> tuple[int, str]:
        code, out, err = self.launched.finish(timeout_s=JOB_S)
        return code, "".join(self.lines) + out + err

    def assert_nothing_is_left(self) -> None:
        assert self.pids
        for pid in self.pids:
            assert gone(pid), f"process {pid} is still there"


@pytest.fixture
def start(settings: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    started: list[Job] = []

    def begin(*options: object, **changes: Any) -> Job:
        started.append(Job(tmp_path, {**settings, **changes}, *options))
        return started[-1]

    yield begin
    for job in started:
        job.launched.end()


def test_a_run_of_which_a_rank_is_killed_goes_on_as_if_uninterrupted_and_leaves_one_adapter(
    start: Callable[..., Job], settings: dict[str, Any], alone_lora: str, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    step, rank = chance.randrange(EVERY + 1, STEPS), chance.randrange(2)
    job = start(
        *("--nproc", 2, "--max-restarts", 1, "--restart-delay", 0.1),
        output=str(tmp_path / "run"),
        lora=LORA,
        # An evaluation has three batches then: the ranks do not have as many each.
        training={**settings["training"], "batch_size": 2},
        parallel={"data": 2, "optimizer_shard": True},
    )
    job.wait_for(f"step {step}/{STEPS}")
    os.kill(job.ranks()[rank], signal.SIGKILL)
    job.wait_for("saved ")
    job.ranks()
    code, said = job.finish()
    assert code == 0, said
    assert said.count("] finished 12 steps") == 1, said
    assert "[rank 1] step" not in said
    job.assert_nothing_is_left()
    assert_same_figures(tmp_path / "run", alone_lora)
    found, expected = weights(tmp_path / "run"), weights(alone_lora)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    ours, theirs = (open_model(path).checkpoint for path in (tmp_path / "run", alone_lora))
    for name in theirs.tensors:  # as load_service opens it, onto its base
        np.testing.assert_allclose(ours.read(name), theirs.read(name), atol=1e-5, err_msg=name)


def test_two_ranks_asked_to_stop_save_what_one_resumes_and_mindspore_merges(
    start: Callable[..., Job], settings: dict[str, Any], alone: str, tmp_path: Path
) -> None:
    import mindspore as ms

    output = tmp_path / "run"
    job = start("--nproc", 2, output=str(output), parallel={"tensor": 2})
    job.wait_for(f"step 5/{STEPS}")
    job.ranks()
    job.launched.process.send_signal(signal.SIGTERM)
    code, said = job.finish()
    assert code == 128 + signal.SIGTERM, said
    assert "stopped after step" in said
    job.assert_nothing_is_left()
    newest = max(path.name for path in (output / "checkpoints").iterdir())
    assert int(newest[-8:]) >= 5
    shards = output / "shards" / newest

    # By MindSpore, by us, and as one process reads them, it is the same checkpoint.
    merged = tmp_path / "merged.safetensors"
    merge_checkpoint(shards, merged, strategy=shards / "strategy.ckpt")
    strategy = str(shards / "strategy.ckpt")
    ms.transform_checkpoints(
        str(shards), str(tmp_path / "theirs"), "m_", strategy, None, output_format="safetensors"
    )
    ours, theirs = (
        load_file(file) for file in (merged, tmp_path / "theirs" / "rank_0" / "m_0.safetensors")
    )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # MindSpore makes a vector of one number of a number.
        np.testing.assert_array_equal(theirs[name].reshape(value.shape), value, err_msg=name)
    shapes = open_model(settings["model"]["path"]).config.tensor_shapes()
    assert {name: ours[name].shape for name in shapes} == dict(shapes)

    # As a model it has the weights alone.
    report = convert(
        shards, tmp_path / "hf", to="hf", strategy=strategy, config=output / "checkpoints" / newest
    )
    assert (report.training_state, report.unknown) == (len(ours) - len(shapes), ())
    model = open_model(tmp_path / "hf").checkpoint
    assert model.tensors.keys() == shapes.keys()
    for name in shapes:
        np.testing.assert_array_equal(model.read(name), ours[name], strict=True)

    load_finetune({**settings, "output": str(output)}).run(resume=True)
    assert_same_figures(output, alone)
    for name, value in weights(alone).items():
        np.testing.assert_allclose(weights(output)[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"data": 3}, "needs 3 devices and there are 2"),
        ({}, "needs 1 devices and there are 2"),
        ({"tensor": 2}, "parallel.tensor=2 does not divide num_attention_heads=3"),
    ],
)
def test_ranks_that_cannot_share_the_run_say_so_before_they_meet(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parallel: dict[str, Any],
    words: str,
) -> None:
    for name, value in {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": "2",
        "MS_NODE_ID": "1",
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": "8118",
    }.items():
        monkeypatch.setenv(name, value)
    if "num_attention_heads" in words:
        other = attrs.evolve(CONFIG, num_attention_heads=3, hidden_size=48)
        write_random_checkpoint(tmp_path / "model", other)
        shutil.copy(model_directory("tiny") / "tokenizer.model", tmp_path / "model")
        settings = {**settings, "model": {"path": str(tmp_path / "model")}}
    with pytest.raises(InvalidParallelPlanError, match=words):
        load_finetune({**settings, "parallel": parallel})
