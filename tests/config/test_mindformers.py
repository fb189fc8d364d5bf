from __future__ import annotations

import logging
from pathlib import Path

import attrs
import pytest

from glm3sdk.config.document import read_yaml
from glm3sdk.config.loader import load_config, load_preset, parse_config
from glm3sdk.config.mindformers import is_mindformers, translate
from glm3sdk.config.schema import DataFormat, LoraSettings, RunConfig, RunMode, ScheduleKind

# Written for these tests with the keys and spellings of MindFormers' configs/glm3.
MULTITURN = """\
seed: 0
run_mode: 'finetune'
output_dir: './output'
load_checkpoint: '/models/chatglm3-6b'
resume_training: False
context:
  mode: 0
  device_target: "Ascend"
  max_call_depth: 10000
  max_device_memory: "59GB"
  device_id: 0
model:
  model_config:
    type: ChatGLM2Config
    num_layers: 28
    seq_length: 2048
    pre_seq_len: None
    param_init_type: "float16"
    compute_dtype: "float16"
    layernorm_compute_type: "float32"
    use_past: False
    use_flash_attention: False
    eos_token_id: 2
    pad_token_id: 0
    max_decode_length: 256
    checkpoint_name_or_path: "glm3_6b"
  arch:
    type: ChatGLM2ForConditionalGeneration
do_eval: False
eval_step_interval: 500
processor:
  tokenizer:
    type: ChatGLM3Tokenizer
    vocab_file: "/models/tokenizer.model"
train_dataset: &train_dataset
  data_loader:
    type: ToolAlpacaDataLoader
    dataset_dir:  "/data/tool_alpaca.jsonl"
    shuffle: True
  max_seq_length: 2048
  num_parallel_workers: 8
train_dataset_task:
  type: MultiTurnDataset
  dataset_config: *train_dataset
runner_config:
  epochs: 2
  batch_size: 8
  sink_mode: True
runner_wrapper:
  type: MFTrainOneStepCell
  scale_sense:
    type: DynamicLossScaleUpdateCell
    loss_scale_value: 65536
    scale_factor: 2
    scale_window: 1000
  use_clip_grad: False
lr_schedule:
  type: polynomial
  learning_rate: 1.e-4
  lr_end: 1.e-6
  warmup_steps: 0
  total_steps: -1
optimizer:
  type: FusedAdamWeightDecay
  beta1: 0.9
  beta2: 0.999
  eps: 1.e-8
  weight_decay: 0.0
  learning_rate: 1.e-4
use_parallel: True
parallel:
  parallel_mode: 1
  full_batch: True
  enable_parallel_optimizer: True
parallel_config:
  data_parallel: 8
  model_parallel: 1
  pipeline_stage: 1
moe_config:
  expert_num: 1
recompute_config:
  recompute: True
  mp_comm_recompute: True
callbacks:
  - type: MFLossMonitor
  - type: CheckpointMonitor
    prefix: "glm3-6b"
    save_checkpoint_steps: 100
    keep_checkpoint_max: 1
  - type: ObsMonitor
"""

ADGEN = """\
train_dataset: &train_dataset
  data_loader:
    type: ADGenDataLoader
    dataset_dir: "/data/train.json"
    shuffle: True
    origin_columns: ["content", "summary"]
  tokenizer:
    vocab_file: "/models/tokenizer.model"
  max_source_length: 64
  max_target_length: 128
  ignore_pad_token_for_loss: True
eval_dataset:
  data_loader: {type: ADGenDataLoader, dataset_dir: "/data/dev.json", shuffle: False}
  max_source_length: 256
  max_target_length: 256
run_mode: 'train'
load_checkpoint: ''
model:
  model_config: {seq_length: 193, checkpoint_name_or_path: "glm3_6b", compute_dtype: bfloat16}
runner_config: {epochs: 1, batch_size: 8}
callbacks:
  - {type: CheckpointMointor, save_checkpoint_steps: 1000, keep_checkpoint_max: 2}
"""


def parse(text: str) -> RunConfig:
    return parse_config(text, source="mf.yaml")


def ignored(text: str) -> list[str]:
    return list(translate(read_yaml(text, "mf.yaml", [])).ignored)


def test_a_mindformers_file_is_told_from_ours():
    assert is_mindformers(read_yaml(MULTITURN, "mf.yaml", []))
    assert is_mindformers(read_yaml("model: {model_config: {}}", "mf.yaml", []))
    for text in ("", "mode: predict\nmodel: {path: tiny}", "model: 3"):
        assert not is_mindformers(read_yaml(text, "run.yaml", []))


def test_the_multiturn_file_becomes_the_multiturn_preset():
    config = parse(MULTITURN)
    preset = load_preset("finetune_multiturn")
    assert preset.train_data is not None
    assert config == attrs.evolve(
        preset,
        output="./output",
        model=attrs.evolve(
            preset.model, path="/models/chatglm3-6b", tokenizer="/models/tokenizer.model"
        ),
        train_data=attrs.evolve(preset.train_data, path="/data/tool_alpaca.jsonl"),
        generation=attrs.evolve(preset.generation, max_length=256),
        evaluation=attrs.evolve(preset.evaluation, during_training=False),
    )


def test_every_key_that_was_not_used_is_named_with_its_line():
    assert ignored(MULTITURN) == [
        "mf.yaml:5: resume_training",
        "mf.yaml:9: context.max_call_depth",
        "mf.yaml:15: model.model_config.num_layers",
        "mf.yaml:26: model.model_config.checkpoint_name_or_path (load_checkpoint comes first)",
        "mf.yaml:27: model.arch",
        "mf.yaml:30: eval_step_interval (do_eval is false)",
        "mf.yaml:33: processor.tokenizer.type",
        "mf.yaml:41: train_dataset.num_parallel_workers",
        "mf.yaml:48: runner_config.sink_mode",
        "mf.yaml:69: optimizer.learning_rate (lr_schedule.learning_rate comes first)",
        "mf.yaml:73: parallel.full_batch",
        "mf.yaml:79: moe_config",
        "mf.yaml:83: recompute_config.mp_comm_recompute",
        "mf.yaml:87: callbacks[1].prefix",
        "mf.yaml:90: callbacks[2]",
    ]


def test_the_ignored_keys_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "mf.yaml"
    path.write_text(MULTITURN, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        load_config(path)
    (record,) = caplog.records
    assert record.name == "glm3sdk.config.loader"
    assert f"{path}:79: moe_config" in record.getMessage()


def test_the_adgen_file_is_translated():
    config = parse(ADGEN)
    assert config.mode is RunMode.FINETUNE
    assert config.runtime.name == "mindspore-ascend"
    assert config.runtime.dtype == "bfloat16"
    assert config.model.path == "glm3_6b"
    assert config.model.tokenizer == "/models/tokenizer.model"
    assert config.train_data is not None
    assert config.train_data.format is DataFormat.ADGEN
    assert config.train_data.columns == ("content", "summary")
    assert (config.train_data.max_source_length, config.train_data.max_target_length) == (64, 128)
    assert config.training.seq_length == 193
    assert config.eval_data is not None
    assert (config.eval_data.max_source_length, config.eval_data.shuffle) == (256, False)
    assert not config.evaluation.during_training
    assert (config.checkpoints.every, config.checkpoints.keep) == (1000, 2)
    assert config.training.batch_size == 8
    assert config.parallel.data == 1


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("train", RunMode.FINETUNE),
        ("finetune", RunMode.FINETUNE),
        ("eval", RunMode.EVALUATE),
        ("predict", RunMode.PREDICT),
    ],
)
def test_a_run_mode_has_our_word(word: str, mode: RunMode):
    assert parse(ADGEN.replace("'train'", word)).mode is mode


def test_outside_training_the_length_is_the_cache_length():
    config = parse(ADGEN.replace("'train'", "predict"))
    assert config.generation.max_seq_length == 193
    assert config.training.seq_length is None
    assert config.generation.batch_size == 8


def test_lora_is_translated():
    pet = (
        "{pet_type: lora, lora_rank: 4, lora_alpha: 16, lora_dropout: 0.05, "
        "target_modules: '.*query_key_value*|.*dense'}"
    )
    config = parse(ADGEN.replace("seq_length: 193", f"seq_length: 193, pet_config: {pet}"))
    assert config.lora == LoraSettings(
        rank=4, alpha=16.0, dropout=0.05, targets=("query_key_value", "dense")
    )
    bare = parse(ADGEN.replace("seq_length: 193", "seq_length: 193, pet_config: {pet_type: lora}"))
    assert bare.lora == LoraSettings()


@pytest.mark.parametrize(
    ("written", "kind", "end"),
    [
        ("{type: CosineWithWarmUpLR, learning_rate: 1.e-5}", ScheduleKind.COSINE, 0.0),
        ("{type: polynomial, learning_rate: 1.e-5}", ScheduleKind.POLYNOMIAL, 1e-7),
        ("{type: CosineWithWarmUpLR, learning_rate: 1.e-5, lr_end: 1.e-6}", "cosine", 1e-6),
    ],
)
def test_a_schedule_is_translated_with_its_own_defaults(written: str, kind: str, end: float):
    schedule = parse(f"{ADGEN}lr_schedule: {written}\n").schedule
    assert (schedule.kind, schedule.learning_rate, schedule.end) == (kind, 1e-5, end)


def test_a_constant_schedule_is_translated():
    text = "lr_schedule: {type: ConstantWarmUpLR, warmup_steps: 5, total_steps: 70}\n"
    schedule = parse(f"{ADGEN}{text}optimizer: {{learning_rate: 2.e-5}}\n").schedule
    assert schedule.kind is ScheduleKind.CONSTANT
    assert (schedule.learning_rate, schedule.warmup_steps, schedule.total_steps) == (2e-5, 5, 70)


def test_an_optimizer_without_a_schedule_keeps_its_rate():
    schedule = parse(f"{ADGEN}optimizer: {{type: AdamW, learning_rate: 2.e-5}}\n").schedule
    assert (schedule.kind, schedule.learning_rate) == (ScheduleKind.CONSTANT, 2e-5)


def test_an_optimizer_is_translated_with_its_own_defaults():
    optimizer = parse(f"{ADGEN}optimizer: {{type: AdamW, betas: [0.8, 0.9]}}\n").optimizer
    assert (optimizer.beta1, optimizer.beta2) == (0.8, 0.9)
    assert (optimizer.epsilon, optimizer.weight_decay) == (1e-6, 0.0)
    assert parse(f"{ADGEN}optimizer: {{type: AdamW}}\n").optimizer.beta2 == 0.999


@pytest.mark.parametrize(
    ("wrapper", "clip"),
    [
        ("{use_clip_grad: True}", 1.0),
        ("{use_clip_grad: True, max_grad_norm: 0.5}", 0.5),
        ("{use_clip_grad: False, max_grad_norm: 0.5}", None),
        ("{type: MFTrainOneStepCell}", None),
    ],
)
def test_clipping_is_translated(wrapper: str, clip: float | None):
    assert parse(f"{ADGEN}runner_wrapper: {wrapper}\n").optimizer.clip_norm == clip


def test_only_float16_takes_the_loss_scale():
    wrapper = "runner_wrapper: {scale_sense: {type: DynamicLossScaleUpdateCell}}\n"
    assert parse(ADGEN + wrapper).loss_scale is None
    assert (
        "mf.yaml:23: runner_wrapper.scale_sense (only float16 needs a loss scale)"
        in ignored(ADGEN + wrapper)
    )  # fmt: skip
    assert parse((ADGEN + wrapper).replace("bfloat16", "float16")).loss_scale is not None


def test_parallel_sections_of_a_run_on_one_card_are_ignored():
    text = "use_parallel: False\nparallel_config: {data_parallel: 8, pipeline_stage: 2}\n"
    assert parse(ADGEN + text).parallel.data == 1
    assert "mf.yaml:24: parallel_config (use_parallel is false)" in ignored(ADGEN + text)


def test_evaluation_during_training_is_translated():
    config = parse(f"{ADGEN}do_eval: True\neval_step_interval: 50\n")
    assert config.evaluation.during_training
    assert config.evaluation.every == 50


@pytest.mark.parametrize(
    ("extra", "lines"),
    [
        (
            "use_parallel: True\nparallel_config: {data_parallel: 8, pipeline_stage: 2}\n",
            ["mf.yaml:24:53: parallel_config.pipeline_stage: 2 is not supported: use 1"],
        ),
        (
            "optimizer: {type: Lamb, beta1: 2}\nlr_schedule: {type: Zigzag}\n",
            [
                "mf.yaml:23:19: optimizer.type: 'Lamb' is not supported (known: AdamW, ",
                "mf.yaml:23:32: optimizer.beta1: must be at least 0 and below 1, not 2.0",
                "mf.yaml:24:21: lr_schedule.type: 'Zigzag' is not supported (known: polynomial, ",
            ],
        ),
        (
            "context: {device_target: GPU, device_id: -1}\n",
            [
                "mf.yaml:23:26: context.device_target: 'GPU' is not supported (known: Ascend, CPU)",
                "mf.yaml:23:42: context.device_id: must be at least 0, not -1",
            ],
        ),
        (
            "recompute_config: {recompute: [1]}\n",
            ["mf.yaml:23:31: recompute_config.recompute: must be true or false, not a list"],
        ),
    ],
)
def test_what_cannot_be_translated_is_a_problem_where_it_was_written(
    extra: str, lines: list[str], complaints
):
    found = complaints(ADGEN + extra, parse)
    assert len(found) == len(lines)
    assert [line[: len(start)] for line, start in zip(found, lines, strict=True)] == lines


def test_an_unknown_data_loader_is_one_problem(complaints):
    (line,) = complaints(MULTITURN.replace("ToolAlpacaDataLoader", "MindDataset"), parse)
    assert line.startswith("mf.yaml:37:11: train_dataset.data_loader.type: 'MindDataset' is not")


def test_a_contradiction_names_mindformers_key(complaints):
    (line,) = complaints(ADGEN.replace("seq_length: 193", "seq_length: 192"), parse)
    assert line.startswith("mf.yaml:19:30: model.model_config.seq_length: must be ")
    assert "= 64 + 128 + 1 = 193, not 192" in line


def test_no_checkpoint_is_a_problem_that_an_override_mends(tmp_path: Path, complaints):
    text = ADGEN.replace('"glm3_6b"', "''")
    assert complaints(text, parse) == ["mf.yaml:17:18: load_checkpoint: must not be empty"]
    path = tmp_path / "mf.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path, overrides=["model.path=/models/x"]).model.path == "/models/x"
