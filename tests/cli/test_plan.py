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


def test_what_each_of_thousands_of_cards_holds_and_sends_is_shown():
    options = ("--set", "parallel.data=512", "--set", "parallel.tensor=8", "--devices", "4096")
    result = plan("finetune_2k", *MODEL, *options)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1:5] == [
        "4,096 devices: data 512 x tensor 8, optimizer sharded",
        "share each layer: ranks 0-7; 512 such groups",
        "hold the same key/value group: ranks 0-3; 1,024 such groups",
        "train on other data: ranks 0, 8, 16, ..., 4088; 8 such groups",
    ]
    (qkv,) = [line for line in lines if "query_key_value (28)" in line]
    assert [cell.strip() for cell in qkv.split("│")[1:-1]] == [
        "query_key_value (28)",
        "4608 x 4096",
        "768 x 4096",
        "3 x 4096",
    ]
    assert "GiB that each card sends in a step; 8 cards on a server" in result.stdout
    assert any(line.startswith("│ ReduceScatter over ranks 0, 8, 16, ...") for line in lines)


def test_json_tells_shards_and_communication():
    options = ("--set", "parallel.data=2", "--set", "parallel.tensor=4", "--nproc", "4")
    values = json.loads(plan("finetune_2k", *MODEL, *options, "--json").stdout)
    assert (values["devices"], values["devices_per_server"]) == (8, 4)
    assert values["groups"] == {
        "tensor": {"groups": 2, "ranks": 4, "distance": 1},
        "data": {"groups": 4, "ranks": 2, "distance": 4},
        "key_value_copies": 2,
    }
    parts = {part["name"]: part for part in values["parts"]}
    output = parts["transformer.output_layer.weight"]
    assert (output["card"], output["state"]) == ([16256, 4096], [8128, 4096])
    sent = values["communication_bytes"]
    assert sum(c["times"] * c["sent"] for c in sent["collectives"]) == sent["sent"]
    assert 0 < sent["sent_between_servers"] < sent["sent"]


def test_one_card_sends_nothing_and_shows_no_shards():
    result = plan("template", *MODEL)
    assert "1 device: data 1 x tensor 1" in result.stdout
    assert "Each card's part" not in result.stdout
    assert "sends" not in result.stdout


def test_a_rank_table_tells_cards_and_servers(shared_data: Path):
    tables = shared_data / "rank_tables"
    two_servers = tables / "03_legacy_lab_group_list_16p_two_servers.json"
    options = ("--rank-table", str(two_servers), "--set", "parallel.data=16")
    values = json.loads(plan("finetune_2k", *MODEL, *options, "--json").stdout)
    assert (values["devices"], values["devices_per_server"]) == (16, 8)
    one = plan(
        "finetune_2k", *MODEL, "--rank-table", str(tables / "11_v1.0_single_4p_from_hccn_conf.json")
    )
    assert (one.exit_code, one.stdout) == (2, "")
    assert one.stderr == (
        "glm3: error: parallel: data x tensor is 8 x 1 = 8, not 4 devices; with "
        "parallel.tensor=1 set parallel.data=4\n"
    )


def test_ranks_that_are_mixed_over_servers_are_counted_as_apart(tmp_path: Path):
    servers = [
        {
            "server_id": f"10.0.0.{server}",
            "device": [
                {
                    "device_id": str(device),
                    "device_ip": f"10.1.{server}.{device}",
                    "rank_id": str(2 * device + server),
                }
                for device in range(2)
            ],
        }
        for server in range(2)
    ]
    table = tmp_path / "table.json"
    values = {"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"}
    table.write_text(json.dumps(values), encoding="utf-8")
    options = ("--rank-table", str(table), "--set", "parallel.data=4", "--json")
    planned = json.loads(plan("finetune_2k", *MODEL, *options).stdout)
    assert planned["devices_per_server"] == 1
    sent = planned["communication_bytes"]
    assert sent["sent_between_servers"] == sent["sent"]


def test_a_rank_table_and_another_number_of_cards_are_refused(tmp_path: Path):
    for option in ("--devices", "--nproc"):
        result = plan("finetune_2k", *MODEL, "--rank-table", str(tmp_path), option, "8")
        assert result.exit_code == 2
        assert "leave --devices and --nproc out" in result.stderr


def test_cards_that_do_not_divide_are_a_line_each_and_exit_code_2():
    options = ("--set", "parallel.tensor=64", "--devices", "8")
    result = plan("finetune_2k", *MODEL, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "glm3: error: parallel: data x tensor is 8 x 64 = 512, not 8 devices",
        "glm3: error: parallel.tensor: 64 does not divide num_attention_heads=32; use one of "
        "1, 2, 4, 8, 16, 32",
    ]


def test_a_missing_model_names_those_that_can_be_planned():
    result = plan("finetune_2k")
    assert result.exit_code == 2
    assert "to plan without a model, set it to one of glm3-6b" in result.stderr


def test_a_dtype_that_the_runtime_lacks_is_refused():
    result = plan("lora_tiny", "--set", "runtime.dtype=bfloat16")
    assert result.exit_code == 2
    assert "does not compute in 'bfloat16'" in result.stderr
