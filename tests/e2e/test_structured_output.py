from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import jsonschema
import pytest

from glm3sdk import (
    Choice,
    GenerationConfig,
    Glm3Service,
    JsonSchema,
    Message,
    Regex,
    ToolCall,
    ToolCallEnd,
    ToolSpec,
)
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.history import read_history

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=200)
DIALOGUES = Path(__file__).parents[2] / "training" / "tiny" / "dialogues"
CITY = ToolSpec(
    "get_weather",
    "查询城市的天气",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
QUESTION = [Message.user("北京的天气怎么样？")]
FORECAST = {
    "type": "object",
    "properties": {
        "city": {"enum": ["北京", "上海"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


class CountingSession:
    """Counts the graph calls of a session."""

    def __init__(self, session) -> None:
        self._session = session
        self.calls = 0

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def prefill(self, *args, **kwargs):
        self.calls += 1
        return self._session.prefill(*args, **kwargs)

    def decode(self, *args):
        self.calls += 1
        return self._session.decode(*args)


class CountingRuntime:
    def __init__(self, runtime) -> None:
        self._runtime = runtime
        self.sessions: list[CountingSession] = []

    def __getattr__(self, name: str):
        return getattr(self._runtime, name)

    def start_decode(self, **options) -> CountingSession:
        self.sessions.append(CountingSession(self._runtime.start_decode(**options)))
        return self.sessions[-1]


@pytest.fixture(scope="module")
def step_by_step(tiny: Glm3Service) -> Iterator[tuple[Glm3Service, CountingRuntime]]:
    """The same model without fast-forward."""
    runtime = CountingRuntime(tiny.runtime)
    constraints = LlguidanceConstraints(tiny.tokenizer)
    service = Glm3Service(
        runtime=runtime,
        tokenizer=tiny.tokenizer,
        constraints=constraints,
        fast_forward=False,
    )
    with service:
        yield service, runtime


@pytest.fixture(scope="module")
def fast(tiny: Glm3Service) -> Iterator[tuple[Glm3Service, CountingRuntime]]:
    runtime = CountingRuntime(tiny.runtime)
    constraints = LlguidanceConstraints(tiny.tokenizer)
    with Glm3Service(runtime=runtime, tokenizer=tiny.tokenizer, constraints=constraints) as service:
        yield service, runtime


def tool_dialogues() -> list[list[Message]]:
    """The conversations up to their first call."""
    found = []
    for line in (DIALOGUES / "tools.jsonl").read_text("utf-8").splitlines()[::5]:
        messages = list(read_history(json.loads(line)["messages"]))
        calls = [place for place, message in enumerate(messages) if message.metadata]
        if calls:
            found.append(messages[: calls[0]])
    return found


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_forced_tokens_save_most_steps_and_change_no_reply(fast, step_by_step, choice):
    config = attrs.evolve(GREEDY, tool_choice=choice)
    replies, steps = [], []
    for service, runtime in (fast, step_by_step):
        before = runtime.sessions[0].calls
        replies.append([service.chat(history, config) for history in tool_dialogues()])
        steps.append(runtime.sessions[0].calls - before)
    assert len(replies[0]) > 5
    for left, right in zip(*replies, strict=True):
        assert left.parts == right.parts
        assert left.history[-1].tokens == right.history[-1].tokens
    assert steps[0] < steps[1] / 3


def test_auto_changes_no_reply_that_is_right_already(tiny: Glm3Service):
    auto = attrs.evolve(GREEDY, tool_choice="auto")
    for history in [*tool_dialogues()[:3], [Message.user("你好")]]:
        tools = None if history[0].tools else [CITY]
        assert tiny.chat(history, auto, tools).parts == tiny.chat(history, GREEDY, tools).parts


def test_a_required_call_fits_a_schema_that_the_model_never_saw(tiny: Glm3Service):
    tool = ToolSpec("book_trip", "", FORECAST)
    for seed in range(4):
        config = GenerationConfig(tool_choice="book_trip", seed=seed, temperature=2.0, top_p=1.0)
        reply = tiny.chat(QUESTION, config, [CITY, tool])
        (call,) = reply.parts
        assert isinstance(call, ToolCall)
        assert (call.name, call.repair) == ("book_trip", None)
        jsonschema.validate(call.arguments, FORECAST)
        assert (reply.finish_reason, reply.incomplete) == ("tool_calls", None)


def test_json_fits_its_schema_alone_in_a_batch_and_streamed(tiny: Glm3Service):
    config = attrs.evolve(GREEDY, constraint=JsonSchema(FORECAST))
    alone = tiny.chat(QUESTION, config)
    jsonschema.validate(json.loads(alone.content), FORECAST)
    assert [reply.content for reply in tiny.chat_batch([QUESTION] * 3, config)] == [
        alone.content
    ] * 3
    events = tiny.stream_chat(QUESTION, config)
    assert "".join(event.content for event in events) == alone.content
    # The conversation goes on from the ids that were written.
    again = tiny.chat([*alone.history, Message.user("你好")], GREEDY)
    assert again.usage.cached_tokens > alone.usage.prompt_tokens
    assert again.usage.prompt_tokens - alone.usage.total_tokens == len(
        [*tiny.tokenizer.encode("\n"), *tiny.tokenizer.encode("你好"), "<|user|>", "<|assistant|>"]
    )


def test_a_streamed_call_is_an_event_that_can_be_read(tiny: Glm3Service):
    config = GenerationConfig(tool_choice="required", seed=1, temperature=3.0)
    ends = [
        event
        for event in tiny.stream_chat(QUESTION, config, [ToolSpec("book_trip", "", FORECAST)])
        if isinstance(event, ToolCallEnd)
    ]
    assert [type(event.part) for event in ends] == [ToolCall]


def test_a_choice_and_a_pattern_are_kept_to(tiny: Glm3Service):
    choice = attrs.evolve(GREEDY, constraint=Choice(["是", "不是"]))
    assert tiny.chat(QUESTION, choice).content in ("是", "不是")
    pattern = attrs.evolve(GREEDY, constraint=Regex("[0-9]{2}°C"))
    assert tiny.chat(QUESTION, pattern).content.endswith("°C")
    text = tiny.generate("今天的气温是", pattern).text
    assert len(text) == 4


def test_the_command_line_answers_with_json(tmp_path: Path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(FORECAST), encoding="utf-8")
    arguments = ["chat", "北京的天气", "--greedy", "--json-schema", str(schema)]
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-m", "glm3sdk", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.validate(json.loads(done.stdout), FORECAST)
