"""A finetune run on MindSpore whose checkpoints are in an object store."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.obs_stores import without_settings
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double
from small_model import SMALL

from glm3sdk import load_finetune
from glm3sdk.adapters.cache_folder import cache_folder
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.testing import write_random_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
URI = "obs://bucket/runs/42"

_CHILD = """
import json, sys
from glm3sdk import StepDone, load_finetune
def tell(event):
    if isinstance(event, StepDone):
        print(event.step, flush=True)
load_finetune(json.loads(sys.argv[1])).run(on_event=tell)
"""


def figures(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_a_run_killed_here_is_finished_on_another_machine_with_the_same_losses(
    tmp_path: Path,
) -> None:
    write_random_checkpoint(tmp_path / "small", SMALL)
    shutil.copy(model_directory("tiny") / "tokenizer.model", tmp_path / "small")
    records = [{"content": f"第{n}个", "summary": "百搭" * (n % 3 + 1)} for n in range(6)]
    data = tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    config: dict[str, Any] = {
        "model": {"path": str(tmp_path / "small")},
        "train_data": {"path": str(data), "format": "adgen-chat", "max_seq_length": 32},
        "training": {"epochs": 3, "batch_size": 2},
        "schedule": {"learning_rate": 1e-2},
        "checkpoints": {"every": 3, "keep": 1},
    }
    load_finetune({**config, "output": str(tmp_path / "local")}).run()
    config["output"] = URI

    def on_machine(name: str) -> None:
        """A disk of its own but for the compiled graphs."""
        folder = tmp_path / name
        folder.mkdir()
        if graphs := cache_folder():
            (graphs / "graphs").mkdir(parents=True, exist_ok=True)  # a link to nowhere keeps none
            (folder / "graphs").symlink_to(graphs / "graphs")
        patch.setenv("GLM3SDK_CACHE_DIR", str(folder))

    with without_settings() as patch, S3Double() as double:
        patch.setenv("OBS_ENDPOINT", double.endpoint)
        patch.setenv("OBS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("OBS_SECRET_ACCESS_KEY", SECRET_KEY)
        on_machine("first")
        command = [sys.executable, "-c", _CHILD, json.dumps(config)]
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=os.environ
        ) as child:
            for line in child.stdout:
                if line.strip() == "5":
                    child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        on_machine("second")
        steps: list[int] = []
        result = load_finetune(config).run(
            resume=True, on_event=lambda event: steps.append(event.step)
        )
        assert (steps[0], result.uri) == (4, f"{URI}/result")
        found = figures(double.objects["bucket", "runs/42/metrics.csv"].content)
        expected = figures((tmp_path / "local" / "metrics.csv").read_bytes())
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        for before, after in zip(expected, found, strict=True):
            assert float(after["loss"]) == pytest.approx(float(before["loss"]), abs=1e-6), before
        fetched, local = open_model(URI).checkpoint, open_model(tmp_path / "local").checkpoint
        for name in local.tensors:
            np.testing.assert_allclose(fetched.read(name), local.read(name), atol=1e-6)
