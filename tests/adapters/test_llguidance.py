from __future__ import annotations

import json
import re
import sys
from decimal import Decimal

import numpy as np
import pytest

from glm3sdk import load_tokenizer
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.adapters.llguidance.numbers import number_pattern
from glm3sdk.adapters.llguidance.patterns import FORMATS, whole_match
from glm3sdk.domain.chat import ToolSpec
from glm3sdk.domain.constraints import CallRule, Choice, Grammar, JsonSchema, Regex, ToolCalls
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import (
    BackendUnavailableError,
    InvalidConstraintError,
    InvalidToolError,
    UnsupportedSchemaError,
)
from glm3sdk.ports.constraint import ConstraintState
from glm3sdk.ports.tokenizer import encode_continuation

TOKENIZER = load_tokenizer("tiny")
COMPILER = LlguidanceConstraints(TOKENIZER)


def takes(state: ConstraintState, text: str) -> bool:
    """Whether a text can be written whole."""
    try:
        for token_id in encode_continuation(TOKENIZER, text):
            state.accept(token_id)
    except InvalidConstraintError:
        return False
    return state.complete


def json_takes(schema: dict, text: str) -> bool:
    return takes(COMPILER.compile(JsonSchema(schema))(), text)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "strng"}, "#/type: type must be one or some of"),
        ({"properties": {"a/b": {"minLength": -1}}}, "#/properties/a~1b/minLength"),
        ({"items": {"pattern": "("}}, "#/items/pattern: pattern must be a regular expression"),
        ({"anyOf": [{"type": "null"}, {"enum": 3}]}, "#/anyOf/1/enum"),
        ({"$ref": "#/$defs/x"}, r"#/\$ref: '#/\$defs/x' names no schema"),
        ({"$ref": "http://elsewhere/x"}, "names no schema in it"),
        ({"enum": []}, "at #: there is no value that it allows"),
        ({"type": "string", "pattern": "(?=a)b"}, "#/pattern: .*look-around"),
        ({"required": ["a"], "additionalProperties": False}, "no value that it allows"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "no value that it allows"),
        ({"const": "half \ud800"}, "#/enum: .*cannot be written"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_its_place(schema, place):
    with pytest.raises(InvalidConstraintError, match=place) as caught:
        COMPILER.compile(JsonSchema(schema))
    assert not isinstance(caught.value, UnsupportedSchemaError)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"not": {}}}}, "#/properties/a/not: 'not' cannot be enforced"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"patternProperties": {}}, "#/patternProperties"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, "#/oneOf: .*may hold at once"),
        ({"type": "number", "multipleOf": 0.01}, "#/multipleOf: steps of 0.01"),
        ({"type": "string", "pattern": "\n"}, "#/pattern: .*needs escapes"),
        ({"type": "string", "pattern": "a^b"}, r"#/pattern: '\^' stands neither"),
        ({"properties": {"a": {}}, "maxProperties": 0}, "#/maxProperties"),
        ({"items": {"if": {}, "then": {}}}, "#/items/if"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_named_with_its_place(schema, place):
    with pytest.raises(UnsupportedSchemaError, match=place):
        COMPILER.compile(JsonSchema(schema))


def test_a_tool_s_schema_is_named_after_the_tool():
    tool = ToolSpec("get_weather", "", {"properties": {"city": {"not": {}}}})
    with pytest.raises(UnsupportedSchemaError, match="at get_weather#/properties/city/not"):
        COMPILER.compile(ToolCalls(CallRule.MUST, (tool,)))


@pytest.mark.parametrize(
    ("constraint", "told"),
    [
        (Regex("a(?=b)"), "Regex constraint cannot be used: .*look-ahead"),
        (Regex("a("), "unclosed group"),
        (Grammar('start: "a" | word'), r"1\(8\): unknown name: \"word\""),
        (Grammar('begin: "a"'), "start"),
    ],
)
def test_a_pattern_or_grammar_that_is_wrong_is_refused_with_its_place(constraint, told):
    with pytest.raises(InvalidConstraintError, match=told) as caught:
        COMPILER.compile(constraint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("a\ud800"),
        Grammar('start: "\ud800"'),
        Choice(["\ud800"]),
        JsonSchema({"properties": {"\ud800": {}}}),
    ],
)
def test_half_a_character_is_refused(constraint):
    with pytest.raises(InvalidConstraintError, match=r"half of a character|invalid|unexpected"):
        COMPILER.compile(constraint)


def test_a_tool_that_the_model_cannot_name_is_refused():
    with pytest.raises(InvalidToolError, match="'get weather'"):
        COMPILER.compile(ToolCalls(CallRule.MUST, (ToolSpec("get weather"),)))


def test_without_llguidance_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'glm3sdk\[structured\]'"):
        LlguidanceConstraints(TOKENIZER).compile(Choice(["a"]))


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (None, None, False, False),
        ("-12", "130", False, False),
        ("0", "9.5", True, False),
        ("-3.25", "-0.5", False, True),
        ("7", "7", False, False),
        ("0.1", "0.2", True, True),
        ("-0.001", "0.001", False, False),
        ("99.99", "100.01", False, True),
    ],
)
def test_a_number_s_pattern_matches_exactly_what_lies_between_its_bounds(low, high, above, below):
    edges = [None if edge is None else Decimal(edge) for edge in (low, high)]
    pattern = number_pattern(*edges, above=above, below=below, integer=False)
    matches = re.compile(pattern).fullmatch
    for hundredths in range(-1400, 14000, 1 if low else 7):
        number = Decimal(hundredths) / 100
        inside = (edges[0] is None or number > edges[0] or (number == edges[0] and not above)) and (
            edges[1] is None or number < edges[1] or (number == edges[1] and not below)
        )
        assert bool(matches(f"{number:.2f}")) is (inside and f"{number:.2f}" != "-0.00")
    for text in ("007", "1e5", ".5", "5.", "+1", "--1", "1.1234567", "1234567890123456", ""):
        assert not matches(text)


def test_there_is_no_pattern_between_bounds_that_cross():
    edges = Decimal("0.5"), Decimal("0.6")
    assert number_pattern(*edges, above=False, below=False, integer=True) is None


def test_a_pattern_searches_unless_it_is_anchored():
    assert json_takes({"type": "string", "pattern": "b"}, '"abc"')
    assert not json_takes({"type": "string", "pattern": "^b"}, '"abc"')
    assert json_takes({"type": "string", "pattern": "^x|c$"}, '"abc"')
    assert not json_takes({"type": "string", "pattern": r"c\$"}, '"abc"')
    assert json_takes({"type": "string", "pattern": r"(?i)^ABC$"}, '"abc"')
    assert whole_match(r"[|$^]\|") == r"(?:(?s:.*)(?:[|$^]\|)(?s:.*))"


def test_formats_that_are_known_are_enforced():
    assert json_takes({"type": "string", "format": "date"}, '"2024-05-31"')
    assert not json_takes({"type": "string", "format": "date"}, '"2024-06-31"')
    assert json_takes({"type": "string", "format": "date-time"}, '"2024-05-31T10:00:00Z"')
    assert json_takes({"type": "string", "format": "ipv4"}, '"10.0.0.255"')
    assert json_takes({"type": "string", "format": "email"}, '"a.b@example.com"')
    assert json_takes({"type": "string", "format": "no such"}, '"anything"')
    assert all(re.compile(pattern) for pattern in FORMATS.values())


def test_one_of_branches_that_exclude_each_other_is_taken_apart():
    schema = {
        "oneOf": [
            {
                "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}},
                "required": ["kind"],
            },
            {"properties": {"kind": {"enum": ["b", "c"]}}, "required": ["kind"], "type": "object"},
        ],
        "type": "object",
    }
    assert json_takes(schema, '{"kind": "a", "x": 3}')
    assert json_takes(schema, '{"kind": "c"}')
    assert not json_takes(schema, '{"kind": "d"}')


def test_arguments_stand_in_the_schema_s_order_and_no_others_are_written():
    schema = {"properties": {"a": {"type": "integer"}, "b-c": {"type": "null"}}, "required": ["a"]}
    calls = ToolCalls(CallRule.MUST, (ToolSpec("f", "", schema),))
    head = " f\n ```python\ntool_call("
    for arguments, right in {
        "a=1": True,
        "a=1, **{'b-c': None}": True,
        "**{'b-c': None}": False,
        "**{'b-c': None}, a=1": False,
        "a=1, d=2": False,
        "a=True": False,
        "a=1,": False,
        "a = 1": False,
    }.items():
        state = COMPILER.compile(calls)()
        assert takes(state, f"{head}{arguments})\n```") is right, arguments


def test_free_arguments_are_written_only_where_the_schema_asks_for_them():
    head, end = " f\n ```python\ntool_call(", ")\n```"
    plain = ToolCalls(CallRule.MUST, (ToolSpec("f", "", {"type": "object"}),))
    assert takes(COMPILER.compile(plain)(), head + end)
    assert not takes(COMPILER.compile(plain)(), f"{head}**{{'a': 1}}{end}")
    parameters = {"type": "object", "additionalProperties": {"type": "integer"}}
    free = ToolCalls(CallRule.MUST, (ToolSpec("f", "", parameters),))
    assert takes(COMPILER.compile(free)(), f"{head}**{{'a': 1, \"b\": 2}}{end}")


def test_code_is_a_call_of_the_interpreter():
    calls = ToolCalls(CallRule.MUST, (ToolSpec("interpreter"),))
    assert takes(COMPILER.compile(calls)(), " interpreter\n ```python\nprint(1)\n```")
    assert not takes(COMPILER.compile(calls)(), " interpreter\n ```python\n\n```")


def test_auto_leaves_text_free_and_holds_calls_to_their_form():
    calls = ToolCalls(CallRule.MAY, (ToolSpec("f"),))
    next_turn = TOKENIZER.special_id(SpecialToken.ASSISTANT)
    state = COMPILER.compile(calls)()
    assert takes(state, " \n f\n```python tool_call(a=b")
    assert not state.finished
    state.accept(next_turn)
    assert takes(state, " f\n ```python\ntool_call()\n```")
    assert not takes(COMPILER.compile(calls)(), " f\n ```python\ntool_call(a=1)\n```")
    assert not takes(COMPILER.compile(calls)(), " g\n ```python\ntool_call()\n```")


def test_none_allows_no_call():
    assert takes(COMPILER.compile(ToolCalls(CallRule.NEVER))(), " \n f\n```python\ntool_call()")
    assert not takes(COMPILER.compile(ToolCalls(CallRule.NEVER))(), " f\n")


def test_a_compiled_constraint_is_remembered(monkeypatch):
    compiler = LlguidanceConstraints(TOKENIZER)
    first = compiler.compile(Choice(["a", "b"]))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    second = compiler.compile(Choice(["a", "b"]))
    assert takes(first(), "a")
    assert takes(second(), "b")
    with pytest.raises(BackendUnavailableError):
        compiler.compile(Choice(["a", "b"]), opening="\n")


def test_a_grammar_s_names_do_not_clash_with_ours():
    grammar = Grammar('start: reply T0\nreply: "a"\nT0: /[0-9]/')
    state = COMPILER.compile(grammar, opening=" \n ")()
    assert takes(state, " \n a7")
    assert state.finished


def test_json_has_one_space_behind_commas_and_colons_and_nowhere_else():
    schema = {"properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    text = json.dumps({"a": [1, 2]})
    assert json_takes(schema, text)
    assert not json_takes(schema, text.replace(" ", ""))
    assert not json_takes(schema, text.replace(" ", "  "))


def test_ids_beyond_the_vocabulary_have_no_place_in_a_mask():
    state = COMPILER.compile(Regex("(?s:.)*"))()
    allowed = np.zeros(TOKENIZER.vocab_size, bool)
    state.fill_mask(allowed)
    assert allowed[3 : TOKENIZER.vocab_size - 9].sum() > 1000
    assert not allowed[[0, 1, 2, *range(TOKENIZER.vocab_size - 9, TOKENIZER.vocab_size)]].any()


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "array", "maxItems": 1}, "[1]", "[1, 2]"),
        ({"additionalProperties": {"type": "null"}, "maxProperties": 1}, '{"a": null}', '{"a": 1}'),
        ({"const": "\x7f"}, '"\x7f"', '"x"'),
        ({"allOf": [{"enum": [False, 2]}, {"enum": [0, 2]}]}, "2", "false"),
        ({"anyOf": [{"minimum": 3}, {"enum": ["x"]}], "maximum": 9}, "7", "10"),
        ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 2}, '"ab"', '"abc"'),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/x", "enum": [2]}},
                "$defs": {"x": {"type": "integer"}},
            },
            '{"a": 1, "b": 2}',
            '{"a": 1, "b": 1}',
        ),
        (
            {
                "properties": {"a": {"minLength": 2}},
                "allOf": [{"properties": {"b": {}}, "additionalProperties": {"type": "string"}}],
            },
            '{"a": "xy", "b": 1}',
            '{"a": 1}',
        ),
        ({"prefixItems": [{"type": "null"}, False], "items": {}}, "[null]", "[null, 1]"),
        ({"type": ["integer", "null"], "multipleOf": 5, "minimum": -5}, "-5", "4"),
    ],
)
def test_keywords_go_together(schema, right, wrong):
    assert json_takes(schema, right)
    assert not json_takes(schema, wrong)
