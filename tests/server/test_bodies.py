"""Whatever a body says, the answer is a reply or names a mistake; never a failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from server.asgi import post
from server.serving import CHAT, HI, WEATHER, call, scripted

from glm3sdk.server import create_app
from glm3sdk.server.openapi import description

COMPLETIONS = "/v1/completions"
FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 1e308, -0.0, "\ud800", "\x00", "<|user|>", "user", "function"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    with scripted("fine", call("get_weather", "city='x'")) as service:
        yield create_app(service, model_name="glm3", max_body_bytes=2**20)


def check(app: Any, path: str, body: bytes) -> int:
    status, answer = post(app, path, body)
    assert status == 200 or 400 <= status < 500, (status, answer, body[:500])
    if status != 200:
        error = json.loads(answer)["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "Traceback" not in error["message"]
    return status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"messages": "\xff"}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": NaN}',
        b'{"messages": [], "messages": [',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999}',
        b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"-1": 1}}',
        b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"99999": 1}}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stream_options": {}}',
        b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}',
        b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"function":'
        b' {"name": "a\\nb", "arguments": "{"}}]}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function",'
        b' "function": {"name": "f", "parameters": {"$ref": "#/nowhere"}, "strict": true}}]}',
    ],
    ids=lambda body: repr(body[-40:]),
)
def test_a_damaged_body_is_a_bad_request(app: Any, body: bytes):
    assert check(app, CHAT, body) == 400


@FUZZ
@given(body=st.binary(max_size=200))
def test_bytes(app: Any, body: bytes):
    assert check(app, CHAT, body) == 400


@FUZZ
@given(data=st.data())
def test_bodies_of_the_right_names_and_any_values(app: Any, data: st.DataObject):
    valid = {
        "messages": HI,
        "model": "glm3",
        "tools": [WEATHER],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "n": 2,
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"5": 1},
        "top_k": 4,
        "repetition_penalty": 1.1,
        "presence_penalty": 0,
        "parallel_tool_calls": False,
    }
    names = data.draw(st.sets(st.sampled_from(sorted(valid)), max_size=8))
    body = {name: valid[name] for name in names | {"messages"}}
    for name in data.draw(st.sets(st.sampled_from(sorted(valid)), max_size=3)):
        body[name] = data.draw(_JSON)
    check(app, CHAT, json.dumps(body).encode())


@FUZZ
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | _JSON},
            optional={
                "content": st.text(max_size=20) | _JSON,
                "tool_calls": _JSON
                | st.lists(
                    st.fixed_dictionaries(
                        {},
                        optional={
                            "id": _JSON,
                            "type": st.just("function"),
                            "function": st.fixed_dictionaries(
                                {},
                                optional={
                                    "name": st.sampled_from(["f", "interpreter", ""]) | _JSON,
                                    "arguments": st.sampled_from(
                                        [
                                            "{}",
                                            "",
                                            "{",
                                            '{"code": 1}',
                                            '{"code": "x"}',
                                            "[1]",
                                            "NaN",
                                        ]
                                    )
                                    | _JSON,
                                },
                            ),
                        },
                    ),
                    max_size=2,
                ),
                "tool_call_id": _JSON,
                "name": _JSON,
                "metadata": _JSON,
                "tools": _JSON,
            },
        ),
        max_size=4,
    )
)
def test_messages_of_any_make(app: Any, messages: list[Any]):
    check(app, CHAT, json.dumps({"messages": messages, "max_tokens": 4}).encode())


@FUZZ
@given(
    body=st.dictionaries(
        st.sampled_from(["prompt", "n", "logprobs", "echo", "best_of", "suffix", "stop", "seed"]),
        st.text(max_size=8) | st.integers(-2, 4) | _JSON,
    )
)
def test_completions_of_any_make(app: Any, body: dict[str, Any]):
    check(app, COMPLETIONS, json.dumps(body).encode())


def test_the_description_has_the_answer_of_a_server_that_stops():
    for path in ("/readyz", CHAT, COMPLETIONS):
        (operation,) = description()["paths"][path].values()
        assert "503" in operation["responses"]


def test_the_published_description_fits_what_is_accepted(app: Any):
    document = json.loads(json.dumps(description()))
    assert {CHAT, COMPLETIONS, "/v1/models", "/healthz", "/metrics"} <= set(document["paths"])
    schemas = json.loads(
        json.dumps(document["components"]["schemas"]).replace("#/components/schemas/", "#/$defs/")
    )
    for path, name, body in (
        (CHAT, "ChatRequest", {"messages": HI, "tools": [WEATHER], "stop": "x", "n": 2}),
        (COMPLETIONS, "CompletionRequest", {"prompt": ["a", "b"], "logprobs": 2}),
    ):
        validator = Draft202012Validator({**schemas[name], "$defs": schemas})
        validator.check_schema(validator.schema)
        validator.validate(body)
        assert check(app, path, json.dumps(body).encode()) == 200
        wrong = {**body, "n": 0}
        assert not validator.is_valid(wrong)
        assert check(app, path, json.dumps(wrong).encode()) == 400
