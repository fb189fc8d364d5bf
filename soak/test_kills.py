"""kill -9 at any moment: nothing half-made is seen, and going on gives what it always gives."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.model_sources import source
from servers.obs_stores import without_settings
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double
from small_model import SMALL

from glm3sdk import load_finetune
from glm3sdk.bootstrap.cached import cached_models
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.bootstrap.storage import checkpoint_store
from glm3sdk.errors import UserError
from glm3sdk.testing import write_random_checkpoint

LONG, SHORT = 20, 3
REPOSITORY = Path(__file__).resolve().parents[1]


def run(operation: str, options: Mapping[str, Any], kind: str = "calls", number: int = 0) -> Any:
    """What a process of its own says at its end; None where it was killed."""
    command = [sys.executable, "-m", "soak.killed", operation, json.dumps(options), kind]
    done = subprocess.run(
        [*command, str(number)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if number and done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def moments(counts: Mapping[str, int], times: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Moments spread evenly over an operation, a third of them at its events."""
    for turn in range(times):
        kind = "events" if counts["events"] and turn % 3 == 2 else "calls"
        each = counts[kind] / times
        first, last = int(turn * each) + 1, max(int((turn + 1) * each), int(turn * each) + 1)
        yield kind, min(rng.randint(first, last), counts[kind])


def killed(
    operation: str,
    options: Mapping[str, Any],
    moment: tuple[str, int],
    begin_anew: Callable[[], object] = lambda: None,
) -> tuple[str, int]:
    """Kill it at a moment, or, where this time there are not so many, at the last one before."""
    kind, number = moment
    while number and run(operation, options, kind, number) is not None:
        number -= 1
        begin_anew()
    assert number, "there was no moment to kill it at"
    return kind, number


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def told(times: int, counts: Mapping[str, int]) -> str:
    return f"  {times} moments of {counts['calls']} calls and {counts['events']} events"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in three files, with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder, SMALL, shards=3, dtype="float16")
    shutil.copy(model_directory("tiny") / "tokenizer.model", folder)
    return folder


@pytest.fixture
def times(short: bool) -> int:
    return SHORT if short else LONG


@contextmanager
def on_obs() -> Iterator[tuple[S3Double, pytest.MonkeyPatch]]:
    with without_settings() as patch, S3Double() as double:
        patch.setenv("OBS_ENDPOINT", double.endpoint)
        patch.setenv("OBS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("OBS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield double, patch


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheme", ["https", "obs", "hf"])
def test_a_pull_goes_on(scheme: str, model: Path, tmp_path: Path, times: int) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    (tmp_path / "source").mkdir()
    with source(scheme, files, tmp_path / "source") as there, pytest.MonkeyPatch.context() as patch:

        def into(name: str) -> Path:
            patch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / name))
            return tmp_path / name

        whole = into("whole")
        counts = run("pull", {"uri": there.uri})
        expected = tree(whole)
        chosen = moments(counts, -(-times // 3), random.Random(scheme))
        for turn, moment in enumerate(chosen):
            cache = into(str(turn))
            at = killed("pull", {"uri": there.uri}, moment, partial(shutil.rmtree, cache))
            for cached in cached_models():
                assert {name: (cached.path / name).read_bytes() for name in files} == files
            path = Path(run("pull", {"uri": there.uri})["result"])
            assert {name: (path / name).read_bytes() for name in files} == files
            # A download that was cut off after its last step leaves an empty journal to prune.
            there_now = {name for name in tree(cache) if not name.endswith(".incomplete.journal")}
            assert there_now == expected.keys(), at
    print(
        f"  {scheme}: {turn + 1} moments of {counts['calls']} calls and {counts['events']} events"
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("to", ["hf", "mindspore", "obs"])
def test_a_conversion_goes_on_or_begins_again(
    to: str, model: Path, tmp_path: Path, times: int
) -> None:
    with on_obs() as (double, patch):
        patch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
        names = {"hf": "{}/model", "mindspore": "{}/model.ckpt", "obs": "obs://bucket/{}/model"}

        def options(name: str) -> dict[str, Any]:
            place = names[to].format(name if to == "obs" else tmp_path / name)
            (tmp_path / name).mkdir()
            more = {"max_shard_bytes": 100_000} if to != "mindspore" else {}
            return {
                "source": str(model),
                "destination": place,
                "to": "mindspore" if to == "mindspore" else "hf",
                "dtype": "float32",
                **more,
            }

        def content(name: str) -> dict[str, bytes]:
            if to != "obs":
                return tree(tmp_path / name)
            return {
                key.removeprefix(f"{name}/"): stored.content
                for (_, key), stored in double.objects.items()
                if key.startswith(f"{name}/")
            }

        def empty(name: str) -> None:
            shutil.rmtree(tmp_path / name)
            (tmp_path / name).mkdir()
            for key in [key for key in double.objects if key[1].startswith(f"{name}/")]:
                del double.objects[key]

        counts = run("convert", options("whole"))
        expected = content("whole")
        chosen = moments(counts, -(-times // 3), random.Random(to))
        for turn, moment in enumerate(chosen):
            asked = options(str(turn))
            at = killed("convert", asked, moment, partial(empty, str(turn)))
            seen = {n: data for n, data in content(str(turn)).items() if "/." not in n}
            if expected.items() <= seen.items():  # killed between publishing and its end
                assert published(asked["destination"], to)
            else:
                assert not published(asked["destination"], to), (at, list(seen))
                run("convert", asked)
            assert content(str(turn)) == expected, at
    print(told(turn + 1, counts))


def published(destination: str, to: str) -> bool:
    """Whether there is a model to be seen."""
    if to == "mindspore":
        return Path(destination).exists()
    parent = destination.rpartition("/")[0]
    return destination in checkpoint_store(destination).list(parent)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["local", "obs"])
def test_a_checkpoint_is_the_old_one_or_the_new_one(place: str, tmp_path: Path, times: int) -> None:
    with on_obs() as (double, patch):
        patch.setenv("GLM3SDK_CACHE_DIR", str(tmp_path / "cache"))
        parent = "obs://bucket/run" if place == "obs" else str(tmp_path / "run")
        uri, store = f"{parent}/step-1", checkpoint_store(parent)

        def value() -> float:
            assert store.list(parent) == (uri,)
            opened = store.open(uri)
            opened.verify()
            found = float(opened.read_file("value.json"))
            for name in opened.tensors:
                assert (opened.read(name) == found).all()
            return found

        run("save", {"uri": uri, "value": 0.0})
        counts = run("save", {"uri": uri, "value": 0.0})
        new = 0.0
        chosen = list(moments(counts, -(-times // 2), random.Random(place)))
        for moment in chosen:
            old, new = new, new + 1.0

            def again(value: float = old) -> None:
                run("save", {"uri": uri, "value": value})

            at = killed("save", {"uri": uri, "value": new}, moment, again)
            assert value() in (old, new), at
            run("save", {"uri": uri, "value": new})
            assert value() == new
        if place == "local":
            assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-1"]
        else:
            assert len({key.split("/")[2] for _, key in double.objects}) == 2, list(double.objects)
    print(told(len(chosen), counts))


@pytest.mark.timeout(1500)
def test_a_finetune_run_ends_with_the_same_losses(model: Path, tmp_path: Path, times: int) -> None:
    records = [{"content": f"第{n}个", "summary": "百搭" * (n % 3 + 1)} for n in range(6)]
    data = tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    config: dict[str, Any] = {
        "model": {"path": str(model)},
        "train_data": {"path": str(data), "format": "adgen-chat", "max_seq_length": 32},
        "eval_data": {"path": str(data), "format": "adgen-chat", "max_seq_length": 32},
        "evaluation": {"every": 4},
        "training": {"epochs": 4, "batch_size": 2, "seed": 7},
        "schedule": {"learning_rate": 1e-2},
        "checkpoints": {"every": 3, "keep": 2},
        "lora": {"rank": 4, "dropout": 0.3},
    }

    def options(name: str, *, resume: bool = False) -> dict[str, Any]:
        return {"config": {**config, "output": str(tmp_path / name)}, "resume": resume}

    run("finetune", options("whole"))  # compiles, so that the next count is without that
    counts = run("finetune", options("counted"))
    expected, weights = figures(tmp_path / "whole"), result(tmp_path / "whole")
    assert figures(tmp_path / "counted") == expected
    ended = 0
    for turn, moment in enumerate(moments(counts, times, random.Random("finetune"))):
        folder = tmp_path / str(turn)
        at = killed("finetune", options(str(turn)), moment, partial(shutil.rmtree, folder))
        store = checkpoint_store(str(folder))
        for uri in (*store.list(str(folder)), *store.list(f"{folder}/checkpoints")):
            store.open(uri).verify()
        if not (folder / "result").exists():
            run("finetune", options(str(turn), resume=True))
        else:  # killed after it was published: a start is refused, and tidies up
            ended += 1
            with pytest.raises(UserError, match="holds a finished run"):
                load_finetune(options(str(turn))["config"]).run()
        found = figures(folder)
        assert [row["step"] for row in found] == [row["step"] for row in expected], at
        for before, after in zip(expected, found, strict=True):
            for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
                assert bool(before[name]) == bool(after[name])
                if before[name]:  # as printed, with seven digits
                    assert float(after[name]) == pytest.approx(float(before[name]), abs=1e-6)
        for name, value in result(folder).items():
            np.testing.assert_allclose(value, weights[name], atol=1e-6)
        leftovers = {path.name for path in folder.rglob(".*")}
        assert not leftovers, (at, leftovers)
        shutil.rmtree(folder)
    print(f"{told(turn + 1, counts)}; {ended} after the result was published")


def figures(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open(encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in {"tokens_per_s", "time"}}
            for row in csv.DictReader(file)
        ]


def result(output: Path) -> dict[str, Any]:
    checkpoint = open_model(output).checkpoint
    return {name: checkpoint.read(name) for name in checkpoint.tensors}
