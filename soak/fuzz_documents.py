"""Fuzzed parsers of documents: what people and other programs write down."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.numpy

from glm3sdk.adapters.cluster.rank_table_files import read_rank_table
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.storage.manifest import parse_manifest
from glm3sdk.config.loader import load_config, preset_names
from glm3sdk.config.schema import DataFormat, DataSettings
from glm3sdk.domain.rank_table import check_rank_table
from glm3sdk.errors import Glm3Error
from glm3sdk.services.datasets import open_dataset
from soak.fuzz_inputs import ARRAYS, TOKENIZER, Target, file, folder


def rank_table(data: bytes) -> None:
    path = file("table.json", data)
    table = read_rank_table(path)
    check_rank_table(table, source=str(path))
    again = read_rank_table(file("again.json", json.dumps(table.to_json()).encode()))
    assert again.rank_size == table.rank_size


def rank_tables() -> dict[str, bytes]:
    device = {"device_id": "0", "device_ip": "192.168.1.1", "rank_id": "0"}
    server = {"server_id": "10.0.0.1", "device": [device], "host_nic_ip": "reserve"}
    new = {
        "version": "1.0",
        "server_count": "1",
        "server_list": [server],
        "status": "completed",
    }
    pod = {"pod_name": "p", "server_id": "10.0.0.1", "devices": [device]}
    group = {"group_name": "", "device_count": "1", "instance_count": "1", "instance_list": [pod]}
    old = {"status": "completed", "group_count": "1", "group_list": [group]}
    return {"new": json.dumps(new).encode(), "old": json.dumps(old).encode()}


def run_config(data: bytes) -> None:
    load_config(file("run.yaml", data))


def run_configs() -> dict[str, bytes]:
    presets = Path(__file__).parents[1] / "glm3sdk" / "config" / "presets"
    own = {name: (presets / f"{name}.yaml").read_bytes() for name in preset_names()}
    theirs = b"""seed: 0
runner_config: {epochs: 1, batch_size: 8, sink_size: 4}
model: {arch: {type: ChatGLM2ForConditionalGeneration}, model_config: {type: ChatGLM2Config}}
lr_schedule: {type: polynomial, learning_rate: 5.e-5, warmup_steps: 0}
parallel_config: {data_parallel: 8, model_parallel: 1}
"""
    return {**own, "mindformers": theirs}


def json_lines(data: bytes) -> None:
    path = file("records.jsonl", data)
    lengths = {"max_source_length": 32, "max_target_length": 32}
    for name, limits in (
        ("adgen", lengths),
        ("adgen-chat", {"max_seq_length": 64}),
        ("multiturn", {"max_seq_length": 64}),
    ):
        settings = DataSettings(path=str(path), format=DataFormat(name), **limits)
        try:
            dataset = open_dataset(JsonLinesFile(path), settings, TOKENIZER)
            for index in range(min(len(dataset), 4)):
                dataset.example(index)
        except Glm3Error:
            continue


def records() -> dict[str, bytes]:
    tools = [{"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}]
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "tool", "name": "f", "parameters": {"a": 1}, "observation": "1"},
        {"role": "assistant", "content": "yes"},
    ]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    lines = [
        {"content": "a", "summary": "b"},
        {"tools": tools, "conversations": turns},
        {"messages": messages},
        {"conversations": messages},
    ]
    return {str(number): json.dumps(line).encode() + b"\n" for number, line in enumerate(lines)}


def model_config(data: bytes) -> None:
    directory = folder() / "model"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_bytes(data)
    if not (directory / "model.safetensors").exists():
        safetensors.numpy.save_file(ARRAYS, directory / "model.safetensors")
    HuggingFaceDirectory(directory)


def model_configs() -> dict[str, bytes]:
    values = {
        "model_type": "chatglm",
        "num_layers": 1,
        "hidden_size": 8,
        "ffn_hidden_size": 8,
        "num_attention_heads": 1,
        "kv_channels": 8,
        "multi_query_attention": True,
        "multi_query_group_num": 1,
        "padded_vocab_size": 16,
        "seq_length": 32,
        "layernorm_epsilon": 1e-05,
        "torch_dtype": "float16",
    }
    return {"one": json.dumps(values).encode()}


def manifest(data: bytes) -> None:
    parse_manifest(data, "manifest.json")


def manifests() -> dict[str, bytes]:
    entry = {"size": 3, "sha256": "a" * 64}
    return {"one": json.dumps({"format": 1, "files": {"a.json": entry}}).encode()}


TARGETS = {
    "rank_table": Target(rank_table, rank_tables),
    "run_config": Target(run_config, run_configs, ("<<:", "&a", "*a", "!!python/name:os.system")),
    "json_lines": Target(json_lines, records, ("\ufeff", "\\ud800")),
    "model_config": Target(model_config, model_configs, ("1e999", "NaN", "-1")),
    "manifest": Target(manifest, manifests, ("../", "/")),
}
