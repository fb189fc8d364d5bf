"""What is fuzzed: each parser of text or bytes that come from elsewhere, with inputs to begin with.

A target takes bytes and returns, or raises an error of `glm3sdk.errors`. Anything else is a
finding. Sound inputs come from writers that are not under test where there are some: json,
yaml, pickle, zipfile, safetensors.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import safetensors.numpy
from reference.torch_files import pickled, tensor, write_torch

from glm3sdk.adapters.cluster.rank_table_files import read_rank_table
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.adapters.storage.manifest import parse_manifest
from glm3sdk.adapters.storage.mindspore_ckpt import MindSporeCkptFile, write_mindspore_ckpt
from glm3sdk.adapters.storage.safetensors_file import TensorFiles, read_specs
from glm3sdk.adapters.storage.safetensors_header import header_length, parse_header
from glm3sdk.adapters.storage.strategy_file import encode_strategy, read_strategy
from glm3sdk.adapters.storage.torch_bin import TorchBinFile
from glm3sdk.adapters.storage.torch_pickle import read_tensors
from glm3sdk.config.loader import load_config, preset_names
from glm3sdk.config.schema import DataFormat, DataSettings
from glm3sdk.domain.constraints import JsonSchema
from glm3sdk.domain.rank_table import check_rank_table
from glm3sdk.domain.replies import ReplyParser, parse_reply
from glm3sdk.domain.sharding import Layout, Strategy
from glm3sdk.domain.tool_calls import parse_tool_call
from glm3sdk.errors import Glm3Error
from glm3sdk.ports.checkpoint_store import CheckpointReader, TensorSpec
from glm3sdk.server import create_app
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.datasets import open_dataset
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import ScriptedRuntime

Call = Callable[[bytes], None]

TOKENIZER = CharacterTokenizer()
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.w": np.ones(4, np.float16)}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@attrs.frozen
class Target:
    """A parser.

    Attributes:
        call: gives it bytes.
        seeds: sound inputs, by any name.
        words: that mean something in its format.
    """

    call: Call
    seeds: Callable[[], Mapping[str, bytes]]
    words: tuple[str, ...] = ()


@cache
def folder() -> Path:
    """Where an input becomes a file; whoever starts the process chooses and removes it."""
    return Path(tempfile.mkdtemp())


def file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")  # what is no UTF-8 becomes lone surrogates


def read_all(reader: CheckpointReader) -> None:
    for name, spec in reader.tensors.items():
        # A shape may claim more than any file of this size holds; its header may not.
        value = reader.read(name)
        assert value.shape == spec.shape, (name, value.shape, spec.shape)


# --- Documents ----------------------------------------------------------------------------------


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


# --- Tensors ------------------------------------------------------------------------------------


def safetensors_file(data: bytes) -> None:
    path = file("model.safetensors", data)
    files = TensorFiles(folder())
    files.add(path, read_specs(path))
    read_all(files)


def safetensors_header(data: bytes) -> None:
    length = header_length(data[:8], len(data), "model.safetensors")
    parse_header(data[8 : 8 + length], len(data), "model.safetensors")


def safetensors_files() -> dict[str, bytes]:
    header = b'{"a":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}'
    return {
        "two": safetensors.numpy.save(ARRAYS, {"format": "pt"}),
        "empty": len(header).to_bytes(8, "little") + header,
    }


def ckpt(data: bytes) -> None:
    reader = MindSporeCkptFile(file("model.ckpt", data))
    read_all(reader)
    reader.verify()


def ckpts() -> dict[str, bytes]:
    # MindSpore would write the same, and takes seconds to start: see its own golden tests.
    specs = {name: TensorSpec(value.shape, value.dtype.name) for name, value in ARRAYS.items()}
    write_mindspore_ckpt(folder() / "seed.ckpt", specs, ARRAYS.items())
    return {"two": (folder() / "seed.ckpt").read_bytes()}


def torch_pickle(data: bytes) -> None:
    read_tensors(data, "model.bin")


def torch_pickles() -> dict[str, bytes]:
    codes = {"a": tensor("0", (2, 3)), "b": tensor("1", (4,), dtype="float16", offset=1, size=9)}
    return {"two": pickled(codes), "none": b"\x80\x02}.", "code": b"cos\nsystem\n(S'true'\ntR."}


def torch_bin(data: bytes) -> None:
    read_all(TorchBinFile(file("model.bin", data)))


def torch_bins() -> dict[str, bytes]:
    write_torch(folder() / "seed.bin", ARRAYS)
    golden = Path(__file__).parents[1] / "tests" / "golden"
    real = {path.name: path.read_bytes() for path in golden.glob("torch_*.bin")}
    small = {name: data for name, data in real.items() if len(data) < 20_000}
    return {**small, "two": (folder() / "seed.bin").read_bytes()}


def strategy(data: bytes) -> None:
    for name in ("strategy.ckpt", "strategy.json"):
        try:
            assert read_strategy(file(name, data)).world_size > 0
        except Glm3Error:
            continue


def strategies() -> dict[str, bytes]:
    layout = Layout([2, 2], [0, -1], opt_weight_shard_step=2, opt_weight_shard_size=2)
    values = {"dev_matrix": [2, 2], "tensor_map": [0, -1], "field": 0}
    return {
        "protobuf": encode_strategy(Strategy(({"w": layout}, {"b": layout}))),
        "json": json.dumps({"parallel_layout_item": {"w": values}}).encode(),
    }


# --- What a model and a client say --------------------------------------------------------------


def tool_call(data: bytes) -> None:
    said = text(data)
    parse_tool_call("f", said)
    parse_reply(said)
    said = data.decode("utf-8", "replace")  # as a detokenizer gives it
    whole = parse_reply(said)
    parser = ReplyParser()
    deltas = []
    for number, turn in enumerate(said.split("<|assistant|>")):
        if number:
            deltas += parser.next_turn()
        for start in range(0, len(turn), 3):
            deltas += parser.feed(turn[start : start + 3])
    deltas += parser.finish()
    assert parser.parts == whole.parts
    assert "".join(delta.content for delta in deltas) == whole.content


def tool_calls() -> dict[str, bytes]:
    said = (
        "get_weather\n```python\ntool_call(city='北京', days=[1, {'a': None}])\n```",
        "interpreter\n```python\nprint(1)\n```",
        '{"name": "f", "arguments": {"a": 1.5e3}}',
        "tool_call(**{'user-id': True}, b=\"x\\u0041\")",
        "好的<|assistant|>f\n```python\ntool_call()\n```[[训练时间]]",
    )
    return {str(number): each.encode() for number, each in enumerate(said)}


def json_schema(data: bytes) -> None:
    try:
        schema = json.loads(data)
    except (ValueError, RecursionError):  # the server's and the command line's to refuse
        return
    constraints().compile(JsonSchema(schema))


@cache
def constraints() -> LlguidanceConstraints:
    return LlguidanceConstraints(TOKENIZER)


def json_schemas() -> dict[str, bytes]:
    schemas: tuple[Any, ...] = (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"enum": ["a", 1, None]},
        {"type": "array", "items": {"anyOf": [{"type": "string", "maxLength": 3}, {"const": 1}]}},
        {"$defs": {"x": {"type": "number", "minimum": 0}}, "$ref": "#/$defs/x"},
        {"type": "string", "pattern": "^a+$", "format": "date"},
    )
    return {str(number): json.dumps(each).encode() for number, each in enumerate(schemas)}


@cache
def application() -> Any:
    service = Glm3Service(
        runtime=ScriptedRuntime("fine"),
        tokenizer=TOKENIZER,
        slots=2,
        constraints=constraints(),
    )
    return create_app(service, model_name="glm3", max_body_bytes=2**16)


def http_body(data: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        status, answer = asyncio.run(posted(application(), path, data))
        assert status == 200 or 400 <= status < 500, (status, answer)
        if status != 200:
            error = json.loads(answer)["error"]
            assert error["message"], answer
            assert "Traceback" not in error["message"], answer


async def posted(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """One request, without a socket between."""
    sent: list[dict[str, Any]] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        if part := next(parts, None):
            return part
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "client": None,
        "server": None,
    }
    await asyncio.wait_for(app(scope, receive, send), timeout=60)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


def http_bodies() -> dict[str, bytes]:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}
    asked = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    bodies: tuple[Any, ...] = (
        {"model": "glm3", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
        {
            "messages": [
                {"role": "system", "content": "x"},
                asked,
                {"role": "assistant", "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "c", "content": "1"},
            ],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {"messages": [asked], "response_format": {"type": "json_object"}, "n": 2, "seed": 1},
        {"messages": [asked], "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}},
        {"prompt": ["a", "b"], "logprobs": 1, "echo": True, "stop": ["x"], "max_tokens": 2},
    )
    return {str(number): json.dumps(each).encode() for number, each in enumerate(bodies)}


TARGETS = {
    "rank_table": Target(rank_table, rank_tables),
    "run_config": Target(run_config, run_configs, ("<<:", "&a", "*a", "!!python/name:os.system")),
    "json_lines": Target(json_lines, records, ("\ufeff", "\\ud800")),
    "model_config": Target(model_config, model_configs, ("1e999", "NaN", "-1")),
    "manifest": Target(manifest, manifests, ("../", "/")),
    "safetensors": Target(safetensors_file, safetensors_files, ("F8_E4M3", "__metadata__")),
    "safetensors_header": Target(
        safetensors_header, safetensors_files, ("F8_E4M3", "__metadata__")
    ),
    "ckpt": Target(ckpt, ckpts, ("BFloat16", "Float32", "Int4")),
    "torch_pickle": Target(torch_pickle, torch_pickles, ("cbuiltins\neval\n", "\x93", "\x94")),
    "torch_bin": Target(torch_bin, torch_bins, ("data.pkl", "PK\x01\x02", "PK\x06\x06")),
    "strategy": Target(strategy, strategies, ("parallel_group_map", "stage")),
    "tool_call": Target(tool_call, tool_calls, ("<|assistant|>", "```", "\\", "'''", "1e999")),
    "json_schema": Target(json_schema, json_schemas, ("allOf", "oneOf", "$ref", "not")),
    "http_body": Target(http_body, http_bodies, ("\\ud800", "1e999", "\\u0000")),
}
