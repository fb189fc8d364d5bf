from __future__ import annotations

import pytest

from glm3sdk.domain.chat import Message, ToolSpec
from glm3sdk.domain.constraints import (
    CallRule,
    Choice,
    Grammar,
    JsonSchema,
    Regex,
    ToolCalls,
    response_format,
    tool_calls,
)
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.prompt import offered_tools
from glm3sdk.domain.tool_documents import documented_tools
from glm3sdk.errors import InvalidConstraintError, InvalidGenerationConfigError, UnknownNameError

TOOLS = (ToolSpec("get_weather"), ToolSpec("get_news"))

DOCUMENT = """getForecast: Tells the weather to come.
Parameters: {"city": "Required. string. Where.", "unit": "string. One of: [c, f]. In what.", \
"days": "Integer. How many.", "tags": "Array[string]. More.", "more": "whatever"}
Output: Successful response.
 - Format: application/json
getNow: Tells the weather now.
Parameters: {}
Output: Successful response.

The detailed output format for the tools is outlined below:
#Weather: Object{temperature}
"""


def test_openai_s_response_formats_are_read():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert response_format(None) is None
    assert response_format("text") is None
    assert response_format({"type": "text"}) is None
    assert response_format({"type": "json_object"}) == JsonSchema({"type": "object"})
    named = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    assert response_format(named) == JsonSchema(schema)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"type": "xml"}, "'json_schema', not"),
        ([], "response_format is an object"),
        ({"type": "json_schema"}, "/json_schema/schema must be a JSON Schema, not None"),
        ({"type": "json_schema", "json_schema": {"schema": "{}"}}, "not '{}'"),
    ],
)
def test_another_response_format_is_refused(value, told):
    with pytest.raises(InvalidConstraintError, match=told):
        response_format(value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: JsonSchema([]), r"an object, not \[\]"),
        (lambda: JsonSchema({"const": float("nan")}), "not JSON"),
        (lambda: Regex(""), "pattern must be a text"),
        (lambda: Grammar(None), "lark must be a text"),
        (lambda: Choice([]), "at least one option"),
        (lambda: Choice("a,b"), "a list of texts, not 'a,b'"),
        (lambda: Choice(["a", "a"]), "'a' is listed twice"),
        (lambda: Choice(["a", " "]), "must be a text, not ' '"),
    ],
)
def test_what_is_no_constraint_is_refused(make, told):
    with pytest.raises(InvalidConstraintError, match=told):
        make()


def test_a_tool_choice_names_what_may_be_called():
    assert tool_calls("required", TOOLS) == ToolCalls(CallRule.MUST, TOOLS)
    assert tool_calls("get_news", TOOLS) == ToolCalls(CallRule.MUST, TOOLS[1:])
    assert tool_calls("auto", TOOLS) == ToolCalls(CallRule.MAY, TOOLS)
    assert tool_calls("none", TOOLS) == ToolCalls(CallRule.NEVER)
    assert tool_calls("auto", ()) is None


def test_a_tool_that_is_not_on_offer_is_named_with_those_that_are():
    with pytest.raises(
        UnknownNameError, match=r"no tool 'get_wether' .*did you mean 'get_weather'"
    ):
        tool_calls("get_wether", TOOLS)
    with pytest.raises(InvalidConstraintError, match="needs tools to call"):
        tool_calls("required", ())


def test_by_default_nothing_is_constrained():
    config = GenerationConfig()
    assert (config.tool_choice, config.constraint) == (None, None)


@pytest.mark.parametrize(
    "options",
    [
        {"tool_choice": ""},
        {"tool_choice": 3},
        {"constraint": {"type": "object"}},
        {"constraint": Choice(["a"]), "tool_choice": "auto"},
    ],
)
def test_a_config_that_contradicts_itself_is_refused(options):
    with pytest.raises(InvalidGenerationConfigError, match=r"tool_choice|constraint"):
        GenerationConfig(**options)


def test_tools_described_in_words_are_read():
    forecast, now = documented_tools(DOCUMENT)
    assert forecast == ToolSpec(
        "getForecast",
        "Tells the weather to come.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "days": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "more": {},
            },
            "required": ["city"],
        },
    )
    assert now.name == "getNow"
    assert now.parameters["properties"] == {}
    assert documented_tools("A text.\nParameters: {") == ()


def test_the_tools_of_system_messages_are_found_in_whatever_form():
    system = Message.system("x", tools=[TOOLS[0], {"name": "get_news"}, DOCUMENT, "?", 3])
    names = [tool.name for tool in offered_tools([system, Message.user("hi")])]
    assert names == ["get_weather", "get_news", "getForecast", "getNow"]
