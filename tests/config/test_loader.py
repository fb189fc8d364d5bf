from __future__ import annotations

import logging
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.config.loader import (
    check_config,
    config_from_mapping,
    dump_config,
    load_config,
    parse_config,
)
from glm3sdk.config.schema import (
    DataFormat,
    DataSettings,
    LoraSettings,
    RunConfig,
    RunMode,
    ScheduleKind,
    TrainingSettings,
)
from glm3sdk.errors import InvalidRunConfigError, UserError

DATA = "train_data: {path: a.jsonl, max_seq_length: 64}\n"


def parse(text: str) -> RunConfig:
    return parse_config(text, source="run.yaml")


def test_what_is_not_written_has_its_default():
    config = parse(DATA)
    assert config == RunConfig(train_data=DataSettings(path="a.jsonl", max_seq_length=64))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.e-4", 1e-4), ("5e-5", 5e-5), ("1e-8", 1e-8), ("1E-3", 1e-3), ("+.5", 0.5), ("2", 2.0)],
)
def test_a_number_reads_as_a_number(text: str, value: float):
    rate = parse(f"{DATA}schedule: {{learning_rate: {text}, end: 0}}").schedule.learning_rate
    assert rate == value
    assert type(rate) is float


@pytest.mark.parametrize("word", ["no", "off", "1:30", "2001-01-01", '"5e-5"', "'true'", "1_000"])
def test_only_yaml_1_2_scalars_are_not_text(word: str):
    assert parse(f"{DATA}output: {word}").output == word.strip("'\"")


def test_a_section_without_lines_has_its_defaults():
    assert parse(f"{DATA}training:\n  # epochs: 3\nlora:\n") == parse(DATA)


def test_every_problem_is_reported_at_once_with_its_place(complaints):
    text = """\
mode: finetun
trainin: {}
training:
  epochs: true
  epohs: 3
  batch_size: 1.0
  accumulate: "2"
  learning_rate: 3
  epochs: 4
train_data:
  format: adgn
  max_source_length: 0
runtime: {dtype: bfloat, max_device_memory: lots}
schedule: {end: 1, learning_rate: 1.e-4}
lora: {dropout: 1, targets: x}
optimizer: {beta1: 1.0, epsilon: 0}
output: 3
model: [1]
"""
    assert complaints(text) == [
        "run.yaml:1:7: mode: must be one of finetune, evaluate, predict, not 'finetun'; "
        "did you mean 'finetune'?",
        "run.yaml:2:1: trainin: unknown key; did you mean 'training'?",
        "run.yaml:4:11: training.epochs: must be an integer, not true",
        "run.yaml:5:3: training.epohs: unknown key; did you mean 'epochs'?",
        "run.yaml:6:15: training.batch_size: must be an integer, not 1.0",
        "run.yaml:7:15: training.accumulate: must be an integer, not '2'",
        "run.yaml:8:3: training.learning_rate: unknown key; did you mean 'schedule.learning_rate'?",
        "run.yaml:9:3: training.epochs: is given twice",
        "run.yaml:10:1: train_data.path: is required",
        "run.yaml:11:11: train_data.format: must be one of adgen, adgen-chat, multiturn, "
        "not 'adgn'; did you mean 'adgen'?",
        "run.yaml:12:22: train_data.max_source_length: must be at least 2, not 0",
        "run.yaml:13:18: runtime.dtype: must be one of float32, float16, bfloat16, not 'bfloat'; "
        "did you mean 'bfloat16'?",
        "run.yaml:13:45: runtime.max_device_memory: must be an amount such as \"59GB\", not 'lots'",
        "run.yaml:14:17: schedule.end: must be at most schedule.learning_rate (0.0001), not 1",
        "run.yaml:15:17: lora.dropout: must be at least 0 and below 1, not 1.0",
        "run.yaml:15:29: lora.targets: must be a list of names, not 'x'",
        "run.yaml:16:20: optimizer.beta1: must be at least 0 and below 1, not 1.0",
        "run.yaml:16:34: optimizer.epsilon: must be above 0, not 0.0",
        "run.yaml:17:9: output: must be text, not 3",
        "run.yaml:18:8: model: must be a section, not a list",
    ]


def test_a_problem_has_its_parts_as_fields():
    with pytest.raises(UserError) as caught:
        parse(f"{DATA}training:\n  epochs: 0\n")
    assert isinstance(caught.value, InvalidRunConfigError)
    assert [tuple(problem) for problem in caught.value.problems] == [
        ("run.yaml", 3, 11, "training.epochs", "must be at least 1, not 0")
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "run.yaml:1:5: not YAML: "),
        ("\tmode: predict", "run.yaml:1:1: not YAML: "),
        ("mode: predict\noutput: 'x", "run.yaml:2:11: not YAML: "),
        ("mode: predict\noutput: \x01", "run.yaml:2:9: not YAML: the character U+0001"),
        ('output: "\\UFFFFFFFF"', "run.yaml: not YAML: "),
        ("--- {}\n--- {}", "run.yaml:2:1: not YAML: "),
        ("mode: *nothing", "run.yaml:1:7: not YAML: "),
        ("[1]", "run.yaml:1:1: must be lines of `key: value`"),
        ("word", "run.yaml:1:1: must be lines of `key: value`"),
        ("mode: predict\n? [1]\n: 2", "run.yaml:2:3: keys must be text"),
        ("mode: predict\noutput: !!python/name:os.system x", "run.yaml:2:9: output: the tag "),
        ("mode: predict\ntraining: {seed: !!int x}", "run.yaml:2:18: training.seed: 'x' is no int"),
        ("mode: predict\noutput: !mine x", "run.yaml:2:9: output: the tag '!mine' is not"),
        (
            'mode: predict\noutput: "\\ud800"',
            "run.yaml:2:9: output: has a character that no name has: '\\ud800'",
        ),
        ("mode: predict\n<<: 3", "run.yaml:2:5: <<: `<<` takes a section"),
        ("", "run.yaml:1:1: train_data: is required by mode finetune"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_place(text: str, line: str, complaints):
    assert complaints(text)[0].startswith(line)


def test_anchors_aliases_and_merge_keys_work():
    config = parse(
        """\
train_data: &data
  path: train.jsonl
  format: adgen
  max_source_length: &length 64
  max_target_length: *length
eval_data:
  <<: *data
  path: dev.jsonl
"""
    )
    assert config.train_data is not None
    assert config.eval_data == attrs.evolve(config.train_data, path="dev.jsonl")


def test_of_several_merged_sections_the_first_wins():
    config = parse(
        """\
mode: predict
train_data: &one {path: one, max_seq_length: 8}
eval_data: &two {path: two, max_seq_length: 9, shuffle: false}
"""
    )
    merged = parse(
        """\
mode: predict
train_data: &one {path: one, max_seq_length: 8}
eval_data: {<<: [*one, {path: two, max_seq_length: 9, shuffle: false}]}
"""
    )
    assert config.eval_data is not None
    assert merged.eval_data == attrs.evolve(config.eval_data, path="one", max_seq_length=8)


def test_a_merged_problem_is_reported_where_it_was_written(complaints):
    text = "mode: predict\ntrain_data: &a {path: x, max_seq_length: -1}\neval_data:\n  <<: *a\n"
    assert complaints(text) == [
        "run.yaml:2:42: train_data.max_seq_length: must be at least 1, not -1",
        "run.yaml:2:42: eval_data.max_seq_length: must be at least 1, not -1",
    ]


def test_aliases_that_multiply_are_refused(complaints):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 30)]
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]", *levels]
    (line,) = complaints("\n".join(lines))
    assert "aliases counted as often as they are used" in line


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "&a\n<<: *a", "&a {b: *a}", "[" * 5000, "a: " + "{a: " * 5000]
)
def test_endless_nesting_is_refused(text: str, complaints):
    (line,) = complaints(text)
    assert "more than 32 levels" in line


def test_a_file_above_one_mebibyte_is_refused(tmp_path: Path, complaints):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    assert complaints(str(path), load_config)[0].startswith(f"{path}: is larger than 1 MiB")
    assert complaints("#" * (1 << 20) + "\n")[0].startswith("run.yaml: is larger than 1 MiB")


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path):
    path = tmp_path / "run.yaml"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + DATA.encode() + "output: 结果".encode())
        assert load_config(path).output == "结果"


def test_bytes_that_are_not_utf8_are_reported_with_their_place(tmp_path: Path, complaints):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"mode: predict\noutput: \xff\n")
    assert complaints(str(path), load_config)[0].startswith(f"{path}:2:9: not UTF-8")


def test_a_missing_file_names_the_presets(tmp_path: Path, complaints):
    (line,) = complaints("finetune_2", load_config)
    assert line.startswith("finetune_2: no such file or preset (presets: finetune_2k, ")
    assert line.endswith("did you mean 'finetune_2k'?")
    assert complaints(str(tmp_path), load_config)[0].startswith(f"{tmp_path}: cannot be read")
    assert "cannot be read" in complaints("a\0b", load_config)[0]


def test_a_file_comes_before_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("predict").model.path == "/path/to/chatglm3-6b"
    (tmp_path / "predict").write_text("mode: predict\nmodel: {path: mine}\n", encoding="utf-8")
    assert load_config("predict").model.path == "mine"


def test_overrides_apply_in_their_order():
    config = load_config(
        "finetune_tiny",
        overrides=[
            "training.max_steps=10",
            "lora.rank=4",
            "lora.targets=[query_key_value, dense]",
            "train_data.path=data/a: b #1.jsonl",
            "schedule.learning_rate=1e-2",
            "training.seed=1",
            "training.seed=2",
            "output='007'",
            "checkpoints={every: 5}",
        ],
    )
    assert config.training.max_steps == 10
    assert config.lora == LoraSettings(rank=4, targets=("query_key_value", "dense"))
    assert config.train_data is not None
    assert config.train_data.path == "data/a: b #1.jsonl"
    assert config.schedule.learning_rate == 0.01
    assert config.training.seed == 2
    assert config.output == "007"
    assert (config.checkpoints.every, config.checkpoints.keep) == (5, 1)


@pytest.mark.parametrize("value", ["null", "", "~"])
def test_an_override_takes_a_section_away(value: str):
    assert load_config("lora_tiny").lora is not None
    assert load_config("lora_tiny", overrides=[f"lora={value}"]).lora is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("lora.rnk=1", "--set lora.rnk: unknown key; did you mean 'rank'?"),
        ("training.epochs", "--set training.epochs: must be key=value, such as"),
        ("a..b=2", "--set a..b=2: must be key=value, such as"),
        ("training.epochs='x", "--set training.epochs: not YAML"),
        ("training.epochs.x=1", "--set training.epochs: must be an integer, not a section"),
        ("training.epochs=1.0", "--set training.epochs: must be an integer, not 1.0"),
        ("eval_data.path=[x]", "--set eval_data.path: must be text, not a list"),
        ("eval_data.shuffle=false", "--set eval_data.path: is required"),
        ("lora=[1]", "--set lora: must be a section, not a list"),
    ],
)
def test_a_wrong_override_is_named(override: str, line: str, complaints):
    lines = complaints("", lambda _: load_config("finetune_tiny", overrides=[override]))
    assert any(found.startswith(line) for found in lines), lines


def test_an_override_mends_what_the_file_lacks(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("train_data: {max_seq_length: 0}\n", encoding="utf-8")
    config = load_config(path, overrides=["train_data.path=a", "train_data.max_seq_length=9"])
    assert config.train_data == DataSettings(path="a", max_seq_length=9)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "train_data: {path: a, format: adgen, max_source_length: 64, max_target_length: 127}\n"
            "training: {seq_length: 193}",
            "2:24: training.seq_length: must be train_data.max_source_length + max_target_length"
            " + 1 = 64 + 127 + 1 = 192, not 193; leave it out to take that",
        ),
        (
            "train_data: {path: a, max_seq_length: 64}\ntraining: {seq_length: 65}",
            "2:24: training.seq_length: must be train_data.max_seq_length = 64, not 65; "
            "leave it out to take that",
        ),
        (
            "train_data: {path: a, format: adgen, max_source_length: 64}",
            "1:1: train_data.max_target_length: is required by format adgen",
        ),
        (
            "train_data: {path: a, format: adgen-chat}",
            "1:1: train_data.max_seq_length: is required by format adgen-chat",
        ),
        ("{}", "1:1: train_data: is required by mode finetune: give at least train_data.path"),
        (
            "mode: evaluate",
            "1:1: eval_data: is required by mode evaluate: give at least eval_data.path",
        ),
        (
            f"{DATA}evaluation: {{every: 5}}",
            "2:21: evaluation.every: needs eval_data: give at least eval_data.path",
        ),
        (
            f"{DATA}schedule: {{warmup_steps: 5}}\ntraining: {{max_steps: 4}}",
            "2:26: schedule.warmup_steps: must be at most training.max_steps (4), not 5",
        ),
        (
            "runtime: {name: mindspore-ascend}\nmodel: {flash_attention: true}\n"
            "train_data: {path: a, max_seq_length: 100}",
            "3:39: train_data.max_seq_length: makes sequences of 100 tokens; "
            "model.flash_attention takes multiples of 16 on Ascend",
        ),
        (
            "mode: predict\nruntime: {name: mindspore-ascend}\nmodel: {flash_attention: true}\n"
            "generation: {max_seq_length: 100}",
            "4:30: generation.max_seq_length: makes sequences of 100 tokens; "
            "model.flash_attention takes multiples of 16 on Ascend",
        ),
    ],
)
def test_values_that_contradict_each_other_are_reported(text: str, line: str, complaints):
    assert complaints(text) == [f"run.yaml:{line}"]


def test_flash_attention_bounds_no_length_on_a_cpu():
    config = parse("model: {flash_attention: true}\ntrain_data: {path: a, max_seq_length: 100}")
    assert config.model.flash_attention


def test_evaluation_data_may_have_a_length_of_its_own():
    config = parse(f"{DATA}training: {{seq_length: 64}}\neval_data: {{path: b, max_seq_length: 9}}")
    assert config.eval_data is not None


def test_a_key_in_error_is_not_missed_as_well(complaints):
    assert complaints("train_data: {path: a, max_seq_length: x}\ntraining: {seq_length: 9}") == [
        "run.yaml:1:39: train_data.max_seq_length: must be an integer, not 'x'"
    ]


def test_python_values_build_the_same_configuration(tmp_path: Path):
    config = config_from_mapping(
        {
            "train_data": {"path": tmp_path / "a", "format": DataFormat.ADGEN_CHAT,
                           "max_seq_length": 64, "columns": ("q", "a")},
            "lora": {"targets": ["dense"], "alpha": 16},
            "schedule": {"kind": "cosine"},
        }
    )  # fmt: skip
    assert config.train_data == DataSettings(
        path=str(tmp_path / "a"),
        format=DataFormat.ADGEN_CHAT,
        max_seq_length=64,
        columns=("q", "a"),
    )
    assert config.lora == LoraSettings(targets=("dense",), alpha=16.0)
    assert config.schedule.kind is ScheduleKind.COSINE


def test_problems_of_python_values_have_no_place():
    endless: dict[str, object] = {}
    endless["x"] = endless
    for mapping, text in (
        ({"train_data": {"path": 3}, "mode": "predict"}, "train_data.path: must be text, not 3"),
        ({"mode": "predict", 3: 4}, "keys must be text, not 3"),
        ({"mode": "predict", "training": {"seed": object}}, "training.seed: must be an integer"),
    ):
        with pytest.raises(InvalidRunConfigError) as caught:
            config_from_mapping(mapping)
        assert str(caught.value).startswith(text)
    with pytest.raises(InvalidRunConfigError, match="nested in more than 32 levels"):
        config_from_mapping(endless)


def test_a_value_out_of_range_cannot_be_built():
    with pytest.raises(InvalidRunConfigError, match="epochs: must be at least 1, not 0"):
        TrainingSettings(epochs=0)
    with pytest.raises(InvalidRunConfigError, match="max_seq_length: must be at most 1048576"):
        DataSettings(path="a", max_seq_length=10**20)
    with pytest.raises(InvalidRunConfigError, match="training: must be a section"):
        RunConfig(training={})
    with pytest.raises(InvalidRunConfigError, match="mode: must be one of"):
        RunConfig(mode="predict")


def test_a_configuration_built_in_python_can_be_checked():
    config = RunConfig(train_data=DataSettings(path="a", max_seq_length=8))
    check_config(config)
    with pytest.raises(InvalidRunConfigError, match="eval_data: is required by mode evaluate"):
        check_config(attrs.evolve(config, mode=RunMode.EVALUATE))


def test_only_training_has_no_kv_cache():
    assert {mode: RunConfig(mode=mode).use_past for mode in RunMode} == {
        RunMode.FINETUNE: False,
        RunMode.EVALUATE: True,
        RunMode.PREDICT: True,
    }


WORDS = st.one_of(
    st.sampled_from(
        ["no", "1e5", "0x1F", "~", "true", "1:30", "<<", " x", "a: b", "#", "结果", "7"]
    ),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1),
).filter(str.strip)
NUMBERS = st.floats(1e-300, 1e300)
CONFIGS = st.builds(
    RunConfig,
    mode=st.just(RunMode.PREDICT),
    output=WORDS,
    lora=st.none()
    | st.builds(
        LoraSettings,
        rank=st.integers(1, 2**70),
        alpha=NUMBERS,
        targets=st.lists(WORDS, min_size=1, unique=True).map(tuple),
    ),
    training=st.builds(TrainingSettings, max_steps=st.none() | st.integers(1, 9)),
)


@given(config=CONFIGS)
def test_what_is_dumped_reads_back_equal(config: RunConfig):
    assert parse(dump_config(config)) == config


KEYS = [
    *("mode", "output", "training", "train_data", "lora", "epochs", "path", "<<", "run_mode"),
    *("model", "model_config", "runner_config", "train_dataset", "callbacks", "optimizer", "type"),
    *("data_loader", "lr_schedule", "runner_wrapper", "scale_sense", "pet_config", "context"),
    *("parallel", "parallel_config", "use_parallel", "betas", "seq_length"),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["train", "predict", "ADGenDataLoader", "polynomial", "CheckpointMonitor"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def explained(error: InvalidRunConfigError) -> None:
    assert error.problems
    assert all(problem.message for problem in error.problems)


@given(value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_no_mapping_ends_in_another_error(value: dict[str, object]):
    try:
        config_from_mapping(value)
    except InvalidRunConfigError as exc:
        explained(exc)


PIECES = st.sampled_from(
    [
        *KEYS,
        *(": ", ":\n  ", "\n", "- ", "&a ", "*a", "{", "}", "[", "]", ", ", "'", '"', ">-\n"),
        *("!!int ", "!!set ", "! ", "? ", "---\n", "...\n", "%YAML 1.2\n", "#", "\t", "1e-4"),
        *("0x", "\\U", "\ufeff", "\x85", "\u2028", "\0", "\ud800", "null", "true", "<<: *a\n"),
    ]
)


@given(text=st.text(max_size=40) | st.lists(PIECES, max_size=25).map("".join))
def test_no_text_ends_in_another_error(text: str):
    try:
        parse(text)
    except InvalidRunConfigError as exc:
        explained(exc)


@given(override=st.text(max_size=20) | st.lists(PIECES, max_size=8).map("=".join))
def test_no_override_ends_in_another_error(override: str):
    try:
        load_config("finetune_tiny", overrides=[override])
    except InvalidRunConfigError as exc:
        explained(exc)


def test_reading_our_own_files_logs_nothing(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        load_config("finetune_2k")
    assert caplog.records == []
