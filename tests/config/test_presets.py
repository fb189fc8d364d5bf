from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import attrs
import pytest

from glm3sdk.config.contradictions import sequence_length
from glm3sdk.config.loader import dump_config, load_preset, parse_config, preset_names
from glm3sdk.config.schema import (
    DataFormat,
    LossScaleSettings,
    RunConfig,
    RunMode,
    ScheduleKind,
    ScheduleSettings,
)
from glm3sdk.errors import InvalidRunConfigError, UnknownNameError

FINETUNE, PREDICT = RunMode.FINETUNE, RunMode.PREDICT
ALONE, EIGHT_CARDS = (1, 1, False), (8, 1, True)

# The reference's five configurations as published. Of its two names for training, "train" and
# "finetune", we have one; None stands where the table has no entry.
TABLE = {
    "mode":          (FINETUNE,   FINETUNE,     FINETUNE,    FINETUNE,        PREDICT),
    "seq_length":    (193,        2048,         192,         2048,            2048),
    "lengths":       ((64, 128),  (1024, 1023), (64, 127),   2048,            (64, 127)),
    "dtype":         ("bfloat16", "bfloat16",   "float16",   "float16",       "float16"),
    "use_past":      (False,      False,        False,       False,           True),
    "flash":         (False,      False,        False,       False,           True),
    "epochs":        (1,          1,            1,           2,               1),
    "batch":         (8,          4,            4,           8,               8),
    "rate":          ((5e-5, 1e-6), (1e-4, 1e-6), (1e-4, 1e-6), (1e-4, 1e-6), (1e-4, 1e-6)),
    "betas":         ((0.9, 0.95), (0.9, 0.95), (0.9, 0.95), (0.9, 0.999),    None),
    "weight_decay":  (0.1,        0.1,          0.1,         0.0,             None),
    "clip":          (True,       True,         True,        False,           None),
    "parallel":      (ALONE,      EIGHT_CARDS,  EIGHT_CARDS, EIGHT_CARDS,     ALONE),
    "recompute":     (True,       True,         True,        True,            False),
    "save":          ((1000, 2),  (1000, 1),    (1000, 1),   (100, 1),        None),
}  # fmt: skip
FIVE = ("template", "finetune_2k", "finetune_adgen", "finetune_multiturn", "predict")
TINY = ("finetune_tiny", "lora_tiny")


def settings_of(config: RunConfig) -> dict[str, object]:
    """A configuration's values in the terms of the table."""
    data = config.train_data if config.mode is FINETUNE else config.eval_data
    assert data is not None
    lengths: object = data.max_seq_length
    if data.format is DataFormat.ADGEN:
        lengths = (data.max_source_length, data.max_target_length)
    training = config.mode is FINETUNE
    return {
        "mode": config.mode,
        "seq_length": config.training.seq_length if training else config.generation.max_seq_length,
        "lengths": lengths,
        "dtype": config.runtime.dtype,
        "use_past": config.use_past,
        "flash": config.model.flash_attention,
        "epochs": config.training.epochs,
        "batch": config.training.batch_size if training else config.generation.batch_size,
        "rate": (config.schedule.learning_rate, config.schedule.end),
        "betas": (config.optimizer.beta1, config.optimizer.beta2),
        "weight_decay": config.optimizer.weight_decay,
        "clip": config.optimizer.clip_norm == 1.0,
        "parallel": (
            config.parallel.data,
            config.parallel.tensor,
            config.parallel.optimizer_shard,
        ),
        "recompute": config.model.recompute,
        "save": (config.checkpoints.every, config.checkpoints.keep),
    }


@pytest.mark.parametrize("name", FIVE)
def test_a_reference_preset_has_the_published_settings(name: str):
    column = {key: row[FIVE.index(name)] for key, row in TABLE.items()}
    found = settings_of(load_preset(name))
    assert found == {key: found[key] if value is None else value for key, value in column.items()}


@pytest.mark.parametrize("name", FIVE)
def test_the_reference_presets_share_the_common_settings(name: str):
    config = load_preset(name)
    assert config.training.seed == 0
    assert config.runtime.name == "mindspore-ascend"
    assert config.runtime.max_device_memory == "59GB"
    assert config.optimizer.epsilon == 1e-8
    assert config.schedule == ScheduleSettings(
        kind=ScheduleKind.POLYNOMIAL,
        power=1.0,
        warmup_steps=0,
        learning_rate=config.schedule.learning_rate,
        end=config.schedule.end,
    )
    assert config.lora is None
    needs_scale = config.mode is FINETUNE and config.runtime.dtype == "float16"
    scale = LossScaleSettings(initial=65536.0, factor=2.0, window=1000)
    assert config.loss_scale == (scale if needs_scale else None)


def test_the_presets_are_these():
    assert preset_names() == tuple(sorted((*FIVE, *TINY)))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_dumps_and_reads_back_equal(name: str):
    config = load_preset(name)
    assert parse_config(dump_config(config), source="dump.yaml") == config


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_begins_with_what_it_is(name: str):
    package = Path(__file__).resolve().parents[2] / "glm3sdk"
    text = (package / "config" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    first, *_ = text.splitlines()
    assert first.startswith("# ")


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_preset_runs_on_a_small_cpu(name: str):
    config = load_preset(name)
    assert (config.runtime.name, config.runtime.dtype) == ("mindspore-cpu", "float32")
    assert config.model.path == "tiny"
    assert config.train_data is not None
    assert 128 <= (sequence_length(config.train_data) or 0) <= 256
    assert config.parallel.data == config.parallel.tensor == 1
    assert (config.lora is not None) == (name == "lora_tiny")


def test_a_preset_takes_overrides():
    config = load_preset("finetune_2k", overrides=["training.max_steps=10"])
    assert config.training.max_steps == 10
    with pytest.raises(InvalidRunConfigError, match=r"--set training\.max_steps: must be at least"):
        load_preset("finetune_2k", overrides=["training.max_steps=0"])


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'finetune_adgen'"):
        load_preset("finetune_adgn")


def test_the_documentation_lists_every_key():
    text = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text("utf-8")
    listed = set(re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)?)`", text))
    missing = []
    attrs.resolve_types(RunConfig)
    for section in attrs.fields(RunConfig):
        kinds = [kind for kind in (section.type, *get_args(section.type)) if attrs.has(kind)]
        keys = [f"{section.name}.{field.name}" for kind in kinds for field in attrs.fields(kind)]
        missing += [key for key in keys or [section.name] if key not in listed]
    # eval_data has the keys of train_data.
    assert [key for key in missing if not key.startswith("eval_data.")] == []
