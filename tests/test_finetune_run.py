"""`load_finetune` and its run, with a table in the place of the model's weights."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
from safetensors.numpy import save_file
from table_runtime import VOCAB, TableRuntime, table_run

from glm3sdk import (
    CheckpointSaved,
    Evaluated,
    FinetuneResult,
    StepDone,
    load_finetune,
    load_tokenizer,
)
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.bootstrap import disk_space, finetune, run_output
from glm3sdk.bootstrap.models import model_directory, open_model
from glm3sdk.config.loader import load_config, parse_config
from glm3sdk.domain.lora import ADAPTER_CONFIG, ADAPTER_TENSORS, Lora
from glm3sdk.errors import (
    BackendUnavailableError,
    CheckpointWriteError,
    InvalidCheckpointError,
    InvalidDatasetError,
    InvalidParallelPlanError,
    InvalidRunConfigError,
    InvalidTokenizerError,
    UnknownNameError,
    UserError,
)
from glm3sdk.testing import write_random_checkpoint

TINY = model_directory("tiny")
STEPS = 6


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[TableRuntime]:
    """Runtimes that were loaded: every one is a table."""
    runtimes: list[TableRuntime] = []

    def start(*_: object, **__: object) -> TableRuntime:
        runtimes.append(TableRuntime())
        return runtimes[-1]

    monkeypatch.setattr(finetune, "start_runtime", start)
    return runtimes


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of 6 steps over 6 records that evaluates and keeps checkpoints."""
    return table_run(tmp_path)


def changed(settings: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    if not section:
        return {**settings, name: value}
    return {**settings, section: {**settings.get(section, {}), name: value}}


def stopping_after(step: int) -> dict[str, Any]:
    """Arguments of a run that is asked to stop after a step."""
    seen: list[object] = []
    return {
        "on_event": seen.append,
        "should_stop": lambda: any(event.step >= step for event in seen),
    }


def figures(output: str) -> list[dict[str, str]]:
    with (Path(output) / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["tokens_per_s"]
    return rows


def test_a_run_leaves_its_result_figures_checkpoints_and_configuration(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    events: list[object] = []
    run = load_finetune(settings)
    assert run.total_steps == STEPS
    assert loaded == []  # no runtime before it runs
    result = run.run(on_event=events.append)
    output = Path(settings["output"])
    assert result == FinetuneResult(
        step=STEPS,
        finished=True,
        loss=result.loss,
        eval_loss=result.eval_loss,
        uri=str(output / "result"),
    )
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "loss.png",
        "metrics.csv",
        "result",
        "tensorboard",
    ]
    assert sorted(path.name for path in (output / "result").iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.model",
        "training_state.json",
    ]
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == [
        "step-00000002",
        "step-00000004",
    ]
    assert load_config(output / "config.yaml") == run.config
    rows = figures(settings["output"])
    assert [row["step"] for row in rows] == [str(step) for step in range(1, STEPS + 1)]
    assert [bool(row["eval_loss"]) for row in rows] == [False, False, True] * 2
    assert float(rows[-1]["loss"]) == result.loss < float(rows[0]["loss"])
    assert [type(event) for event in events if not isinstance(event, StepDone)] == [
        CheckpointSaved,
        Evaluated,
        CheckpointSaved,
        Evaluated,
    ]
    assert load_tokenizer(output / "result").fingerprint == load_tokenizer("tiny").fingerprint


def test_a_run_that_was_stopped_is_resumed_with_the_same_figures(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = {**settings, "output": str(tmp_path / "whole")}
    load_finetune(whole).run()
    first = load_finetune(settings).run(**stopping_after(3))
    assert (first.step, first.finished) == (3, False)
    assert Path(first.uri).name == "step-00000003"
    written = (Path(settings["output"]) / "config.yaml").read_bytes()
    last = load_finetune(settings).run(resume=True)
    assert last.finished
    assert figures(settings["output"]) == figures(whole["output"])
    assert (Path(settings["output"]) / "config.yaml").read_bytes() == written
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        one, other = (
            Path(each) / "result" / name for each in (settings["output"], tmp_path / "whole")
        )
        assert one.read_bytes() == other.read_bytes(), name


def test_what_was_being_removed_when_a_run_was_killed_goes_with_the_next_start(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    settings = {**settings, "checkpoints": {"every": 1000}}  # none but where it is stopped
    run = load_finetune(settings)
    run.run(**stopping_after(2))
    left = Path(run.output.folder, "checkpoints", ".step-00000001.tmp-1-0123abcd")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert load_finetune(settings).run(resume=True).finished
    assert not left.exists()


def test_what_a_finished_run_left_when_it_was_killed_goes_where_another_start_is_refused(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    load_finetune(settings).run()
    output = Path(settings["output"])
    before = set(output.rglob("*"))
    left = output / "checkpoints" / ".step-00000001.tmp-1-0123abcd"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (output / ".loss.png.0123abcd.part").write_bytes(b"half")
    foreign = output / ".notes.txt.0123abcd.part"
    foreign.write_bytes(b"not the run's")
    with pytest.raises(UserError, match="holds a finished run"):
        load_finetune(settings).run()
    assert set(output.rglob("*")) == before | {foreign}


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_do_not_train_one_run_at_once(
    loaded: list[TableRuntime], settings: dict[str, Any], resume: bool
) -> None:
    part = Path(settings["output"], ".metrics.csv.0123abcd.part")  # which the first one writes

    def start_another(_: object) -> None:
        part.write_bytes(b"half")
        with pytest.raises(UserError, match="another process of this machine trains"):
            load_finetune(settings).run(resume=resume)
        assert part.exists()

    assert load_finetune(settings).run(on_event=start_another).finished


def test_a_resumed_run_drops_what_was_recorded_after_its_checkpoint(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def die(event: object) -> None:
        if event.step == 6:
            raise Killed

    whole = {**settings, "output": str(tmp_path / "whole")}
    load_finetune(whole).run()
    with pytest.raises(Killed):
        load_finetune(settings).run(on_event=die)
    assert figures(settings["output"])[-1]["step"] == "6"
    resumed: list[StepDone] = []
    load_finetune(settings).run(resume=True, on_event=resumed.append)
    assert resumed[0].step == 5
    assert figures(settings["output"]) == figures(whole["output"])


def test_a_finished_run_is_never_overwritten(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    load_finetune(settings).run()
    for resume in (False, True):
        with pytest.raises(UserError, match="holds a finished run; choose another output"):
            load_finetune(settings).run(resume=resume)
    assert len(loaded) == 1


def test_an_unfinished_run_is_resumed_or_left_alone(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    load_finetune(settings).run(**stopping_after(1))
    with pytest.raises(UserError, match="did not finish; resume it, or choose another output"):
        load_finetune(settings).run()
    assert len(loaded) == 1


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = {**settings, "output": str(tmp_path / "whole")}
    load_finetune(whole).run()
    output = Path(settings["output"])
    (output / "checkpoints").mkdir(parents=True)
    (output / "metrics.csv").write_text("step,loss,tokens_per_s\n1,9.0,1\n2,8.", encoding="utf-8")
    load_finetune(settings).run()
    assert figures(settings["output"]) == figures(whole["output"])


def test_there_need_be_nothing_to_resume(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    assert load_finetune(settings).run(resume=True).finished


class Change(NamedTuple):
    key: str
    value: object


@pytest.mark.parametrize(
    "change",
    [
        Change("training.seed", 1),
        Change("training.batch_size", 3),
        Change("training.max_steps", 5),
        Change("schedule.learning_rate", 0.2),
        Change("optimizer.beta2", 0.9),
        Change("train_data.max_seq_length", 40),
        Change("loss_scale.initial", 8.0),
        Change("lora.rank", 4),
    ],
)
def test_resuming_with_another_configuration_is_refused_by_name(
    loaded: list[TableRuntime], settings: dict[str, Any], change: Change
) -> None:
    load_finetune(settings).run(**stopping_after(1))
    with pytest.raises(InvalidCheckpointError, match="another configuration") as raised:
        load_finetune(changed(settings, *change)).run(resume=True)
    named = {"training.max_steps": "total_steps"}.get(change.key, change.key)
    assert named in str(raised.value)


def test_resuming_with_other_data_is_refused_and_moving_the_file_is_not(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path
) -> None:
    load_finetune(settings).run(**stopping_after(1))
    data = Path(settings["train_data"]["path"])
    moved = changed(settings, "train_data.path", str(data.rename(tmp_path / "moved.jsonl")))
    moved = changed(moved, "eval_data.path", moved["train_data"]["path"])
    assert load_finetune(moved).run(resume=True, **stopping_after(2)).step == 2
    edited = (tmp_path / "moved.jsonl").read_text(encoding="utf-8").replace("第1个", "第9个")
    assert "\\u7b2c1" in edited or "第9个" in edited
    (tmp_path / "moved.jsonl").write_text(edited.replace("\\u7b2c1", "\\u7b2c9"), encoding="utf-8")
    with pytest.raises(InvalidCheckpointError, match=r"train_data\.sha256 was"):
        load_finetune(moved).run(resume=True)


@pytest.mark.parametrize(
    "change",
    [
        Change("checkpoints.every", 1),
        Change("checkpoints.keep", 1),
        Change("evaluation.every", None),
        Change("training.log_every", 1),
        Change("model.recompute", True),
        Change("training.seq_length", 32),
        Change("training.max_steps", STEPS),
    ],
)
def test_what_decides_no_loss_may_change_on_resume(
    loaded: list[TableRuntime], settings: dict[str, Any], change: Change
) -> None:
    load_finetune(settings).run(**stopping_after(1))
    assert load_finetune(changed(settings, *change)).run(resume=True).finished


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("training.epochs", 0, InvalidRunConfigError, "training.epochs"),
        ("runtime.name", "mindspore-gpu", UnknownNameError, "mindspore-gpu"),
        ("model.path", "/no/such/model", InvalidCheckpointError, "/no/such/model"),
        ("model.tokenizer", "/no/such/file", InvalidTokenizerError, "/no/such/file"),
        ("train_data.path", "/no/such/data", InvalidDatasetError, "/no/such/data"),
        ("eval_data.path", "/no/such/data", InvalidDatasetError, "/no/such/data"),
        ("training.seq_length", 31, InvalidRunConfigError, "max_seq_length = 32"),
        ("parallel.data", 8, InvalidParallelPlanError, "glm3 launch --nproc 8 -- glm3 finetune"),
        ("parallel.tensor", 2, InvalidParallelPlanError, "parallel.tensor=2 is a run of 2 ranks"),
    ],
)
def test_a_mistake_is_known_before_a_runtime_is_loaded(
    loaded: list[TableRuntime],
    settings: dict[str, Any],
    key: str,
    value: object,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error) as raised:
        load_finetune(changed(settings, key, value))
    assert words in str(raised.value)
    assert loaded == []
    assert not Path(settings["output"]).exists()


def test_only_a_finetune_configuration_is_finetuned(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="mode is predict"):
        load_finetune({**settings, "mode": "predict"})


def test_evaluation_data_without_a_trained_token_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    silent = {"conversations": [{"role": "user", "content": "你好"}]}
    silent["conversations"].append({"role": "assistant", "content": "你好", "loss": False})
    path = tmp_path / "silent.jsonl"
    path.write_text(json.dumps(silent), encoding="utf-8")
    data = {"path": str(path), "format": "multiturn", "max_seq_length": 32}
    with pytest.raises(InvalidDatasetError, match=r"silent\.jsonl: no token of the evaluation"):
        load_finetune({**settings, "eval_data": data})


def test_a_tokenizer_of_another_model_is_refused(
    settings: dict[str, Any], shared_data: Path
) -> None:
    large = str(shared_data / "tokenizer" / "tokenizer.model")
    with pytest.raises(InvalidTokenizerError, match="64798 ids"):
        load_finetune(changed(settings, "model.tokenizer", large))


@pytest.mark.parametrize("form", ["file", "directory", "name"])
def test_a_tokenizer_may_be_a_file_a_directory_or_the_bundled_one(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path, form: str
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(TINY / "tokenizer.model", folder)
    given = {"file": str(folder / "tokenizer.model"), "directory": str(folder), "name": "tiny"}
    result = load_finetune(changed(settings, "model.tokenizer", given[form])).run()
    copied = (Path(result.uri) / "tokenizer.model").read_bytes()
    assert copied == (TINY / "tokenizer.model").read_bytes()


def test_a_model_without_a_tokenizer_says_so(settings: dict[str, Any], tmp_path: Path) -> None:
    config = attrs.evolve(open_model("tiny").config, num_layers=1)
    write_random_checkpoint(tmp_path / "bare", config)
    with pytest.raises(InvalidTokenizerError, match=r"tokenizer\.model"):
        load_finetune(changed(settings, "model.path", str(tmp_path / "bare")))
    with_tokenizer = changed(settings, "model.path", str(tmp_path / "bare"))
    assert load_finetune(changed(with_tokenizer, "model.tokenizer", "tiny")).total_steps == STEPS


def test_a_full_disk_is_known_before_the_first_step(
    loaded: list[TableRuntime], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path(settings["output"]).parent)
    weights = 4 * VOCAB**2
    # Checkpoints after 2 and 4 steps, of weights and two moments each, then the result.
    needed = 2 * (3 * weights + 8) + weights

    def with_free(free: int) -> Callable[..., FinetuneResult]:
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage._replace(free=free))
        return load_finetune(settings).run

    with pytest.raises(
        CheckpointWriteError, match=r"take 0\.00 GB \(0\.00 GB a checkpoint\): free some"
    ):
        with_free(needed - 1)()
    assert not (Path(settings["output"]) / "metrics.csv").exists()
    assert with_free(needed)().finished


@pytest.mark.parametrize(
    ("present", "coming", "keep", "most"),
    [
        (0, 0, 2, 0),
        (0, 1, 2, 1),
        (0, 2, 2, 2),
        (0, 9, 2, 3),
        (1, 9, 2, 2),
        (2, 9, 2, 1),
        (3, 1, 1, 1),
    ],
)
def test_one_more_checkpoint_than_is_kept_lies_there_at_once(
    present: int, coming: int, keep: int, most: int
) -> None:
    assert disk_space.new_checkpoints(present, coming, keep) == most


def test_an_output_that_cannot_be_written_is_known_before_a_runtime_is_loaded(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    run = load_finetune({**settings, "output": str(tmp_path / "file" / "run")})
    with pytest.raises(CheckpointWriteError, match="a file is in the place of a directory"):
        run.run()
    assert loaded == []


def test_a_run_does_not_fail_for_want_of_a_picture(
    loaded: list[TableRuntime],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def without(*_: object) -> None:
        raise BackendUnavailableError("a plot needs matplotlib")

    monkeypatch.setattr(run_output, "plot_metrics", without)
    with caplog.at_level(logging.WARNING):
        assert load_finetune(settings).run().finished
    assert "no loss.png was drawn: a plot needs matplotlib" in caplog.text


def test_a_configuration_is_a_file_a_preset_a_mapping_or_a_value(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    by_mapping = load_finetune(settings)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    by_file = load_finetune(file, overrides=["training.max_steps=2"])
    assert by_file.total_steps == 2
    by_value = load_finetune(parse_config(json.dumps(settings), source="run.yaml"))
    assert by_value.config == by_mapping.config
    path = settings["train_data"]["path"]
    preset = load_finetune(
        "finetune_tiny", overrides=[f"train_data.path={path}", f"output={tmp_path / 'preset'}"]
    )
    assert len(preset.train) == 6


MODEL = {"recompute": True, "flash_attention": True}


def test_the_plan_is_the_configurations(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.2, "targets": ["dense"]}
    given = changed({**settings, "lora": lora}, "training.seed", 3)
    given = {**given, "optimizer": {"beta1": 0.8, "clip_norm": None}, "model": MODEL}
    result = load_finetune(given).run()
    (plan,) = loaded[0].plans
    assert plan.lora == Lora(rank=4, alpha=8.0, dropout=0.2, targets=("dense",))
    assert (plan.optimizer.beta1, plan.optimizer.clip_norm) == (0.8, None)
    assert (plan.recompute, plan.flash_attention, plan.seed) == (True, True, 3)
    written = json.loads((Path(result.uri) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    # A name, which holds wherever the package is installed.
    assert written["base_model_name_or_path"] == "tiny"
    assert (Path(result.uri) / ADAPTER_TENSORS).is_file()
    assert not (Path(result.uri) / "config.json").exists()


# --- Adapters on disk -----------------------------------------------------------------------

SMALL = attrs.evolve(open_model("tiny").config, num_layers=1)


def write_adapter(folder: Path, base: str, *, seed: int = 0) -> dict[str, np.ndarray]:
    lora = Lora(rank=2, alpha=4.0, targets=("dense",))
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal(shape, np.float32)
        for pair in lora.pairs(SMALL)
        for name, shape in ((pair.name_a, pair.shape_a), (pair.name_b, pair.shape_b))
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / ADAPTER_TENSORS)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(lora.to_peft(base=base)), encoding="utf-8")
    return tensors


DENSE = "transformer.encoder.layers.0.self_attention.dense.weight"


def difference(tensors: dict[str, np.ndarray]) -> np.ndarray:
    a, b = (next(tensors[n] for n in tensors if letter in n) for letter in ("lora_A", "lora_B"))
    return 2.0 * (b @ a)


def test_an_adapters_base_may_be_relative_to_the_adapter_or_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_random_checkpoint(tmp_path / "base", SMALL)
    tensors = write_adapter(tmp_path / "adapters" / "one", "../../base")
    expected = weights[DENSE] + difference(tensors)
    opened = open_model(tmp_path / "adapters" / "one")
    np.testing.assert_allclose(opened.checkpoint.read(DENSE), expected, rtol=1e-5, atol=1e-5)
    write_adapter(tmp_path / "adapters" / "two", "base")
    monkeypatch.chdir(tmp_path)
    assert open_model("adapters/two").config == SMALL
    monkeypatch.chdir("/")
    with pytest.raises(InvalidCheckpointError, match="base_model_name_or_path"):
        open_model(tmp_path / "adapters" / "two")


def test_an_adapter_may_stand_on_another(tmp_path: Path) -> None:
    weights = write_random_checkpoint(tmp_path / "base", SMALL)
    first = write_adapter(tmp_path / "first", str(tmp_path / "base"), seed=1)
    second = write_adapter(tmp_path / "second", str(tmp_path / "first"), seed=2)
    expected = weights[DENSE] + difference(first) + difference(second)
    merged = open_model(tmp_path / "second").checkpoint
    np.testing.assert_allclose(merged.read(DENSE), expected, rtol=1e-5, atol=1e-5)
    plain = HuggingFaceDirectory(tmp_path / "base")
    other = "transformer.output_layer.weight"
    np.testing.assert_array_equal(merged.read(other), plain.read(other))


def test_adapters_in_a_circle_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "one", "../two")
    write_adapter(tmp_path / "two", "../one")
    with pytest.raises(InvalidCheckpointError, match="too many adapters"):
        open_model(tmp_path / "one")


def test_a_runs_directory_is_its_result_or_its_newest_checkpoint(
    loaded: list[TableRuntime], settings: dict[str, Any]
) -> None:
    output = Path(settings["output"])
    load_finetune(settings).run(**stopping_after(3))
    assert model_directory(output) == output / "checkpoints" / "step-00000003"
    load_finetune(settings).run(resume=True)
    assert model_directory(output) == output / "result"


def test_an_adapter_trained_on_an_adapter_names_it_as_its_base(
    loaded: list[TableRuntime], settings: dict[str, Any], tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path / "base", SMALL)
    write_adapter(tmp_path / "first", "../base")
    given = changed({**settings, "lora": {"rank": 2}}, "model.path", str(tmp_path / "first"))
    result = load_finetune(changed(given, "model.tokenizer", "tiny")).run()
    written = json.loads((Path(result.uri) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == str(tmp_path / "first")
