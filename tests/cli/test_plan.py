from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from glm3sdk.cli.app import app

MODEL = ("--set", "model.path=glm3-6b")


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], prog_name="glm3")


def test_a_reference_run_is_planned_without_weights_and_data():
    result = plan("finetune_2k", *MODEL)
    assert result.exit_code == 0
    assert "6,243,584,000 parameters" in result.stdout
    assert "recomputed (this run)" in result.stdout
    assert "steps unknown, tokens a step 65,536" in result.stdout
    assert "note: no file /path/to/AdvertiseGen/train.json" in result.stderr
    assert "warning: does not fit max_device_memory 59GB" in result.stderr


def test_json_is_one_object_of_bytes():
    result = plan("finetune_2k", *MODEL, "--json")
    values = json.loads(result.stdout)
    assert values["devices"] == 8
    assert values["memory_bytes"]["weights"] == 2 * 6_243_584_000
    assert values["steps"] is None
    assert values["fits"]["32GB"] is False


def test_the_bundled_model_and_a_data_file_give_the_steps(tmp_path: Path):
    data = tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
    data.write_text(f"{json.dumps({'messages': turns})}\n" * 10, encoding="utf-8")
    options = ("--set", f"train_data.path={data}", "--set", "training.epochs=2", "--json")
    values = json.loads(plan("lora_tiny", *options).stdout)
    assert (values["records"], values["steps"]) == (10, 5)
    assert [note[:8] for note in values["notes"]] == ["on a CPU"]
    without_tokenizer = json.loads(plan("lora_tiny", *options, *MODEL).stdout)
    assert (without_tokenizer["records"], without_tokenizer["steps"]) == (10, 5)
    assert "no tokenizer" in without_tokenizer["notes"][0]


def test_cards_that_do_not_divide_are_a_line_each_and_exit_code_2():
    result = plan("finetune_2k", *MODEL, "--set", "parallel.tensor=4", "--devices", "8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "glm3: error: parallel: data x tensor is 8 x 4 = 32, not 8 devices",
        "glm3: error: parallel.tensor: 4 does not divide multi_query_group_num=2; use one of 1, 2",
    ]


def test_a_missing_model_names_those_that_can_be_planned():
    result = plan("finetune_2k")
    assert result.exit_code == 2
    assert "to plan without a model, set it to one of glm3-6b" in result.stderr


def test_a_dtype_that_the_runtime_lacks_is_refused():
    result = plan("lora_tiny", "--set", "runtime.dtype=bfloat16")
    assert result.exit_code == 2
    assert "does not compute in 'bfloat16'" in result.stderr
