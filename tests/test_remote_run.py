"""Finetune runs whose output is a URI, with a table in the place of the model's weights."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_storage import PassingBlobs, register_blobs
from reference.tensorboard_events import read_scalars
from table_runtime import VOCAB, TableRuntime, table_run

from glm3sdk import CheckpointSaved, FinetuneResult, load_finetune
from glm3sdk.adapters.cache_folder import FOLDER_VARIABLE
from glm3sdk.bootstrap import disk_space, finetune, run_output
from glm3sdk.bootstrap.storage import checkpoint_store
from glm3sdk.errors import (
    BlobAccessError,
    BlobUnavailableError,
    CheckpointWriteError,
    InvalidCheckpointError,
    UnknownNameError,
    UserError,
)
from glm3sdk.testing import MemoryBlobStore, MemoryCheckpointStore

URI = "memory://bucket/run-42"
STEPS = 6


class KilledError(BaseException):
    """The process ends here."""


class Machine:
    """What a run finds: a store that all machines share, and a local disk of its own.

    Attributes:
        blobs: the store.
        places: what the store was told to do, in order.
        act: is told of each; may raise.
    """

    def __init__(self, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._patch, self._tmp_path, self._number = patch, tmp_path, 0
        self.blobs = MemoryBlobStore()
        self.places: list[str] = []
        self.act: Callable[[str], None] = lambda _: None
        register_blobs(patch, lambda: PassingBlobs(self.blobs, self._tell))
        patch.setattr(finetune, "start_runtime", lambda *_, **__: TableRuntime())
        self.move()

    def move(self) -> None:
        """Go to another machine: nothing of before is on its disk."""
        self._number += 1
        self._patch.setenv(FOLDER_VARIABLE, str(self.cache))

    @property
    def cache(self) -> Path:
        return self._tmp_path / f"cache-{self._number}"

    def read(self, uri: str) -> bytes:
        blob = self.blobs.stat(uri)
        assert blob is not None, uri
        return self.blobs.read(blob, 0, blob.size)

    def names(self) -> set[str]:
        return {blob.uri.removeprefix(f"{URI}/") for blob in self.blobs.list(URI)}

    def figures(self) -> list[dict[str, str]]:
        return rows(self.read(f"{URI}/metrics.csv"))

    def scalars(self, folder: Path) -> dict[int, dict[str, float]]:
        """What TensorBoard shows of the events in the store."""
        folder.mkdir()
        for blob in self.blobs.list(f"{URI}/tensorboard"):
            (folder / blob.uri.rsplit("/", 1)[1]).write_bytes(self.read(blob.uri))
        shown = read_scalars(folder)
        return {step: {k: v for k, v in row.items() if k in SHOWN} for step, row in shown.items()}

    def _tell(self, place: str) -> None:
        self.places.append(place)
        self.act(place)


SHOWN = ("loss", "grad_norm", "learning_rate", "eval_loss")


def rows(data: bytes) -> list[dict[str, str]]:
    found = list(csv.DictReader(io.StringIO(data.decode())))
    for row in found:
        del row["tokens_per_s"]
    return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setattr(run_output, "plot_metrics", lambda _, path: path.write_bytes(b"a picture"))
    return Machine(monkeypatch, tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of 6 steps over 6 records that evaluates and keeps one of two checkpoints."""
    return {**table_run(tmp_path), "output": URI, "checkpoints": {"every": 2, "keep": 1}}


@pytest.fixture
def local(machine: Machine, settings: dict[str, Any], tmp_path: Path) -> Path:
    """The same run in a local directory, never interrupted."""
    load_finetune({**settings, "output": str(tmp_path / "local")}).run()
    return tmp_path / "local"


def stopping_after(step: int) -> dict[str, Any]:
    seen: list[Any] = []
    return {
        "on_event": seen.append,
        "should_stop": lambda: any(event.step >= step for event in seen),
    }


def assert_same_as(local: Path, machine: Machine) -> None:
    assert machine.figures() == rows((local / "metrics.csv").read_bytes())
    result = checkpoint_store(URI).open(f"{URI}/result")
    result.verify()
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        assert result.read_file(name) == (local / "result" / name).read_bytes(), name


def test_a_run_leaves_behind_the_uri_what_it_leaves_in_a_directory(
    machine: Machine, settings: dict[str, Any], local: Path, tmp_path: Path
) -> None:
    events: list[object] = []
    run = load_finetune({**settings, "output": f"{URI}/"})
    result = run.run(on_event=events.append)
    assert result == FinetuneResult(
        step=STEPS,
        finished=True,
        loss=result.loss,
        eval_loss=result.eval_loss,
        uri=f"{URI}/result",
    )
    assert [event.uri for event in events if isinstance(event, CheckpointSaved)] == [
        f"{URI}/checkpoints/step-00000002",
        f"{URI}/checkpoints/step-00000004",
    ]
    assert_same_as(local, machine)
    tops = {name.split("/")[0] for name in machine.names()}
    assert tops == {each.name for each in local.iterdir()}
    assert machine.scalars(tmp_path / "events") == {
        step: {k: v for k, v in row.items() if k in SHOWN}
        for step, row in read_scalars(local / "tensorboard").items()
    }
    assert run.output.figure("loss.png") == f"{URI}/loss.png"
    assert run.output.figure("no such") is None
    # Nothing stays on the local disk.
    assert not [path for path in machine.cache.rglob("*") if path.is_file()]


def test_figures_are_safe_before_the_checkpoint_that_needs_them_is_published(
    machine: Machine, settings: dict[str, Any]
) -> None:
    seen: list[tuple[str, str]] = []

    def look(place: str) -> None:
        if place.startswith("before writing") and place.endswith("/manifest.json"):
            seen.append((place.split("/")[-2], machine.figures()[-1]["step"]))

    machine.act = look
    load_finetune(settings).run()
    assert seen == [("step-00000002", "2"), ("step-00000004", "4"), ("result", "6")]


def test_a_run_goes_on_on_another_machine_with_the_same_figures(
    machine: Machine, settings: dict[str, Any], local: Path, tmp_path: Path
) -> None:
    stopped = load_finetune(settings).run(**stopping_after(3))
    assert (stopped.step, stopped.uri) == (3, f"{URI}/checkpoints/step-00000003")
    written = machine.read(f"{URI}/config.yaml")
    machine.move()
    assert load_finetune(settings).run(resume=True).finished
    assert_same_as(local, machine)
    assert machine.read(f"{URI}/config.yaml") == written
    assert list(machine.scalars(tmp_path / "events")) == list(range(1, STEPS + 1))


def test_a_run_killed_at_any_request_resumes_elsewhere_to_the_same_last_bit(
    machine: Machine, settings: dict[str, Any], local: Path
) -> None:
    load_finetune(settings).run()
    places = list(machine.places)
    assert len([place for place in places if place.endswith("/manifest.json")]) > 6
    for number in range(len(places)):
        machine.blobs = MemoryBlobStore()
        machine.places = []

        def die(place: str, number: int = number) -> None:
            if len(machine.places) > number:
                raise KilledError(place)

        machine.act = die
        with pytest.raises(KilledError):
            load_finetune(settings).run()
        machine.act = lambda _: None
        if number % 2:
            machine.move()
        if f"{URI}/result/manifest.json" not in {blob.uri for blob in machine.blobs.list(URI)}:
            load_finetune(settings).run(resume=True)
        assert_same_as(local, machine)
        assert len(checkpoint_store(URI).list(f"{URI}/checkpoints")) == 1, places[number]


def test_what_arrived_before_a_kill_is_not_sent_again(
    machine: Machine, settings: dict[str, Any]
) -> None:
    def die(place: str) -> None:
        if "before writing" in place and place.endswith("result/manifest.json"):
            raise KilledError

    machine.act = die
    with pytest.raises(KilledError):
        load_finetune(settings).run()
    machine.act, machine.places = lambda _: None, []
    load_finetune(settings).run(resume=True)
    sent = [place for place in machine.places if "before writing" in place and "/result/" in place]
    assert sent == [f"before writing {URI}/result/manifest.json"]


def test_a_finished_run_is_never_overwritten_and_an_unfinished_one_resumed_or_left(
    machine: Machine, settings: dict[str, Any]
) -> None:
    load_finetune(settings).run(**stopping_after(1))
    with pytest.raises(UserError, match=f"{URI} holds a run that did not finish; resume it"):
        load_finetune(settings).run()
    load_finetune(settings).run(resume=True)
    for resume in (False, True):
        with pytest.raises(UserError, match=f"{URI} holds a finished run; choose another"):
            load_finetune(settings).run(resume=resume)


def test_two_processes_do_not_train_one_run_at_once(
    machine: Machine, settings: dict[str, Any]
) -> None:
    def start_another(_: object) -> None:
        with pytest.raises(UserError, match=f"another process of this machine trains {URI}"):
            load_finetune(settings).run(resume=True)

    load_finetune(settings).run(on_event=start_another)


@pytest.mark.parametrize(
    "error", [BlobUnavailableError("503 SlowDown"), BlobAccessError("credentials expired")]
)
def test_a_store_that_fails_at_a_checkpoint_ends_the_run_which_resumes(
    machine: Machine,
    settings: dict[str, Any],
    local: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr("glm3sdk.adapters.storage.retries.time.sleep", lambda _: None)

    def fail(place: str) -> None:
        if "before writing" in place and "step-00000004" in place:
            raise error

    machine.act = fail
    with pytest.raises(CheckpointWriteError, match=str(error)) as raised:
        load_finetune(settings).run()
    assert "step-00000004 could not be published" in str(raised.value)
    assert "resume the run" in str(raised.value)
    machine.act = lambda _: None
    load_finetune(settings).run(resume=True)
    assert_same_as(local, machine)


def test_a_last_picture_that_cannot_be_sent_does_not_fail_a_run_that_ended_well(
    machine: Machine, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(place: str) -> None:
        if place == f"before writing {URI}/loss.png":
            raise BlobAccessError("no permission")

    machine.act = fail
    assert load_finetune(settings).run().finished
    assert "could not be sent: no permission; they are in" in caplog.text
    (picture,) = machine.cache.rglob("loss.png")
    assert picture.read_bytes() == b"a picture"


def test_a_full_disk_is_known_before_the_first_step(
    machine: Machine, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 4 * VOCAB**2
    # One checkpoint at a time: weights and two moments.
    needed = 3 * weights + 8
    usage = disk_space.shutil.disk_usage(machine.cache.parent)

    def with_free(free: int) -> Callable[..., FinetuneResult]:
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage._replace(free=free))
        return load_finetune(settings).run

    with pytest.raises(CheckpointWriteError, match=f"is put together there for {URI}"):
        with_free(needed - 1)()
    assert not machine.names()
    assert with_free(needed)().finished


def test_what_others_put_beside_a_run_is_not_fetched(
    machine: Machine, settings: dict[str, Any]
) -> None:
    load_finetune(settings).run(**stopping_after(1))
    names = ("notes.txt", "tensorboard/deep/er", "tensorboard/.hidden", "metrics.csv/x", "loss.png")
    for name in names:
        machine.blobs.write(f"{URI}/{name}", b"x")
    machine.move()
    fetched: set[str] = set()

    def look(event: object) -> None:
        folder = next((machine.cache / "runs").iterdir())
        fetched.update(str(path.relative_to(folder)) for path in folder.rglob("*"))

    load_finetune(settings).run(resume=True, on_event=look)
    assert {name for name in fetched if "tfevents" not in name} == {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
    }


def test_a_damaged_checkpoint_is_named_with_the_one_that_is_intact(
    machine: Machine, settings: dict[str, Any]
) -> None:
    settings["checkpoints"]["keep"] = 2
    load_finetune(settings).run(**stopping_after(4))
    (weights,) = (
        name for name in machine.names() if "step-00000004" in name and "optimizer" in name
    )
    content = bytearray(machine.read(f"{URI}/{weights}"))
    content[-1] ^= 1
    machine.blobs.write(f"{URI}/{weights}", bytes(content))
    with pytest.raises(InvalidCheckpointError, match=r"step-00000002 is intact") as raised:
        load_finetune(settings).run(resume=True)
    assert f"Remove {URI}/checkpoints/step-00000004 and resume" in str(raised.value)


def test_an_adapter_names_a_base_that_came_from_a_uri_by_it(
    machine: Machine, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = finetune.open_model("tiny")
    monkeypatch.setattr(finetune, "open_model", lambda _: opened)
    base = "memory://bucket/base"
    load_finetune({**settings, "model": {"path": base}, "lora": {"rank": 2}}).run()
    result = checkpoint_store(URI).open(f"{URI}/result")
    assert json.loads(result.read_file("adapter_config.json"))["base_model_name_or_path"] == base


def test_a_file_uri_is_the_directory_that_it_names(
    machine: Machine, settings: dict[str, Any], local: Path, tmp_path: Path
) -> None:
    result = load_finetune({**settings, "output": f"file://{tmp_path}/by%20uri"}).run()
    assert result.uri == str(tmp_path / "by uri" / "result")
    assert rows((tmp_path / "by uri" / "metrics.csv").read_bytes()) == rows(
        (local / "metrics.csv").read_bytes()
    )


def test_a_scheme_of_checkpoints_alone_leaves_the_figures_on_the_local_disk(
    machine: Machine, settings: dict[str, Any], local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryCheckpointStore()
    monkeypatch.setattr(run_output, "checkpoint_store", lambda _: store)
    monkeypatch.setattr(run_output, "has_blob_store", lambda _: False)
    run = load_finetune({**settings, "output": "elsewhere://run"})
    run.run(**stopping_after(3))
    load_finetune({**settings, "output": "elsewhere://run"}).run(resume=True)
    assert store.list("elsewhere://run") == ("elsewhere://run/result",)
    figures = run.output.figure("metrics.csv")
    assert figures is not None
    assert rows(Path(figures).read_bytes()) == rows((local / "metrics.csv").read_bytes())


def test_an_unknown_scheme_is_known_before_a_runtime_is_loaded(
    machine: Machine, settings: dict[str, Any]
) -> None:
    with pytest.raises(UnknownNameError, match=r"'memry'.*did you mean 'memory'"):
        load_finetune({**settings, "output": "memry://bucket/run"})
