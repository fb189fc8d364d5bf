"""Whatever tokens are chosen, what a schema's grammar lets through is what the schema allows."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from glm3sdk import load_tokenizer
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.chat import ToolCall, ToolSpec
from glm3sdk.domain.constraints import CallRule, JsonSchema, ToolCalls
from glm3sdk.domain.replies import parse_reply
from glm3sdk.domain.tool_calls import render_tool_call
from glm3sdk.errors import InvalidConstraintError, UnsupportedSchemaError
from glm3sdk.ports.constraint import StartConstraint
from glm3sdk.ports.tokenizer import piece_bytes

TOKENIZER = load_tokenizer("tiny")
COMPILER = LlguidanceConstraints(TOKENIZER)
LENGTHS = np.array([len(piece_bytes(TOKENIZER.piece(i))) for i in range(TOKENIZER.vocab_size)])
# Tokens that help a walk to its end: of brackets, quotes, commas and digits.
ENDING = np.array(
    [set(TOKENIZER.piece(i)) <= set("▁[]{}()'\",:=`0123456789\n*") for i in range(len(LENGTHS))]
)
NAMES = ("city", "days", "from", "b-c", "名", "x1", "it's")

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10_000, 10_000),
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3)),
    st.text(max_size=6),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from(NAMES), st.booleans(), max_size=2),
)
bounds = st.one_of(
    st.integers(-300, 300), st.floats(-300, 300, allow_nan=False).map(lambda v: round(v, 4))
)
patterns = st.sampled_from(
    ["^[a-z]+$", "[0-9]{2}", r"^\d{3}-\w+$", "a|^b", "^(ab|c)*$", r"\.", "x/y", "^[^a-z]{1,4}$"]
)


def keywords(**options: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=options)


def sizes(low: str, high: str, most: int) -> st.SearchStrategy[dict]:
    return st.tuples(st.integers(0, most), st.integers(0, most)).map(
        lambda pair: {low: min(pair), high: max(pair)}
    )


strings = st.builds(
    lambda size, rest: {"type": "string", **size, **rest},
    st.one_of(st.just({}), sizes("minLength", "maxLength", 12)),
    keywords(pattern=patterns, description=st.just("words"), format=st.sampled_from(["date", "x"])),
)
numbers = st.builds(
    lambda kind, limits, step: {"type": kind, **limits, **step},
    st.sampled_from(["integer", "number", ["number", "null"]]),
    keywords(minimum=bounds, maximum=bounds, exclusiveMinimum=bounds, exclusiveMaximum=bounds),
    keywords(multipleOf=st.sampled_from([1, 2, 7, 25, 3.0])),
)
leaves = st.one_of(
    strings,
    numbers,
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({}),
    st.lists(values, min_size=1, max_size=4).map(lambda options: {"enum": options}),
    values.map(lambda value: {"const": value}),
    st.just({"$ref": "#/$defs/node"}),
)


def objects(schemas: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    def build(properties: dict, required: set[str], rest: dict) -> dict:
        return {"type": "object", "properties": properties, "required": sorted(required), **rest}

    return st.builds(
        build,
        st.dictionaries(st.sampled_from(NAMES), schemas, max_size=4),
        st.sets(st.sampled_from(NAMES[:4]), max_size=2),
        keywords(additionalProperties=st.one_of(st.booleans(), schemas)),
    )


def arrays(schemas: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    return st.builds(
        lambda size, rest: {"type": "array", **size, **rest},
        st.one_of(st.just({}), sizes("minItems", "maxItems", 3)),
        keywords(
            items=st.one_of(schemas, st.just(False)),
            prefixItems=st.lists(schemas, min_size=1, max_size=2),
        ),
    )


def combined(schemas: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    several = st.lists(schemas, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda word, parts: {word: parts}, st.sampled_from(["anyOf", "oneOf"]), several),
        st.builds(lambda parts: {"allOf": parts}, st.lists(schemas, min_size=1, max_size=2)),
        st.builds(lambda base, parts: {**base, "anyOf": parts}, schemas, several),
    )


schemas = st.recursive(
    leaves, lambda inner: st.one_of(objects(inner), arrays(inner), combined(inner)), max_leaves=8
)
nodes = objects(st.one_of(leaves, arrays(leaves)))


def with_definition(schema: dict, node: dict) -> dict:
    return {**schema, "$defs": {"node": node}}


def walk(start: StartConstraint, seed: int) -> str:
    """Choose tokens at random until nothing is missing, towards the end the short ones."""
    choose = random.Random(seed)
    state, written, allowed = start(), [], np.empty(TOKENIZER.vocab_size, bool)
    patience = choose.randrange(1, 60)
    while not state.finished and not (state.complete and choose.random() < 0.4):
        state.fill_mask(allowed)
        ids = np.flatnonzero(allowed)
        assert len(ids), "nothing may follow, and it is not complete"
        if len(written) > patience and ENDING[ids].any() and choose.random() < 0.8:
            ids = ids[ENDING[ids]]
        written.append(int(choose.choice(ids)))
        state.accept(written[-1])
        if len(written) > 400:
            return ""  # a pattern with no short text, or a long list
    return TOKENIZER.decode(written)


def compiled(constraint: JsonSchema | ToolCalls) -> StartConstraint | None:
    try:
        return COMPILER.compile(constraint)
    except InvalidConstraintError as exc:
        told = isinstance(exc, UnsupportedSchemaError) or "no value that it allows" in str(exc)
        if told and "the JSON Schema at " in str(exc):
            return None
        raise


@settings(max_examples=150)
@given(objects(schemas), nodes, st.integers(0, 2**32))
def test_every_call_that_the_mask_lets_through_is_read_and_valid(schema, node, seed):
    schema = with_definition(schema, node)
    tool = ToolSpec("get_weather", "", schema)
    start = compiled(ToolCalls(CallRule.MUST, (tool,)))
    assume(start is not None)
    text = walk(start, seed)
    assume(text)
    (call,) = parse_reply(text).parts
    assert isinstance(call, ToolCall), text
    assert (call.name, call.repair) == ("get_weather", None)
    jsonschema.validate(call.arguments, schema)


@settings(max_examples=150)
@given(schemas, nodes, st.integers(0, 2**32))
def test_every_json_that_the_mask_lets_through_is_valid(schema, node, seed):
    schema = with_definition(schema, node)
    start = compiled(JsonSchema(schema))
    assume(start is not None)
    text = walk(start, seed)
    assume(text)
    jsonschema.validate(json.loads(text), schema)


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8},
        "days": {"type": "integer", "minimum": -3, "maximum": 140},
        "unit": {"enum": ["c", "f", None, 2.5, True]},
        "when": {
            "type": "array",
            "items": {"anyOf": [{"type": "boolean"}, {"enum": [6, 12, -18]}]},
            "maxItems": 3,
        },
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "integer"}, "名": {"type": "string"}},
            "required": ["lat"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def values_of(schema: dict) -> st.SearchStrategy:
    """Values that a schema allows; of objects, in the order of their properties."""
    if schema.get("type") == "string":
        # What Python's repr writes by its number is not written.
        return st.text("ab9 '\"\\\n\t\r北京é-_.", min_size=schema.get("minLength", 0), max_size=8)
    if schema.get("type") != "object":
        return from_schema(schema)
    parts = {name: values_of(inner) for name, inner in schema["properties"].items()}
    optional = {name: part for name, part in parts.items() if name not in schema["required"]}
    required = {name: part for name, part in parts.items() if name not in optional}
    return st.fixed_dictionaries(required, optional=optional).map(
        lambda value: {name: value[name] for name in parts if name in value}
    )


@given(values_of(WEATHER))
def test_every_call_that_the_schema_allows_can_be_written_as_we_render_it(arguments):
    body = render_tool_call(arguments)
    jsonschema.validate(arguments, WEATHER)
    state = COMPILER.compile(ToolCalls(CallRule.MUST, (ToolSpec("f", "", WEATHER),)))()
    for token_id in [*TOKENIZER.encode("f\n"), *TOKENIZER.encode(body)]:
        state.accept(token_id)
    assert state.complete


@pytest.mark.parametrize("seed", range(40))
def test_a_schema_that_refers_to_itself_ends(seed):
    tree = {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "left": {"$ref": "#/$defs/tree"},
                    "right": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                    "value": {"type": "integer"},
                },
                "required": ["value"],
            }
        },
    }
    text = walk(COMPILER.compile(JsonSchema(tree)), seed)
    if text:
        jsonschema.validate(json.loads(text), tree)
