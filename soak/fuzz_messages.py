"""Fuzzed parsers of what a model and a client say."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from server.asgi import post

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.constraints import JsonSchema
from glm3sdk.domain.replies import ReplyParser, parse_reply
from glm3sdk.domain.tool_calls import parse_tool_call
from glm3sdk.server import create_app
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.scripted_runtime import ScriptedRuntime
from soak.fuzz_inputs import TOKENIZER, Target


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")  # what is no UTF-8 becomes lone surrogates


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
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, answer = post(application(), path, data)
        assert status == 200 or 400 <= status < 500, (status, answer)
        if status != 200:
            error = json.loads(answer)["error"]
            assert error["message"], answer
            assert "Traceback" not in error["message"], answer


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
    "tool_call": Target(tool_call, tool_calls, ("<|assistant|>", "```", "\\", "'''", "1e999")),
    "json_schema": Target(json_schema, json_schemas, ("allOf", "oneOf", "$ref", "not")),
    "http_body": Target(http_body, http_bodies, ("\\ud800", "1e999", "\\u0000")),
}
