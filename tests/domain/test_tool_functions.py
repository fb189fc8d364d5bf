from __future__ import annotations

import functools
import typing
from typing import Annotated, Any, Literal, Optional

import pytest

from glm3sdk.domain.chat import ToolSpec
from glm3sdk.domain.tool_functions import Tool, as_tool, tool
from glm3sdk.errors import InvalidToolError


@tool
def search(
    query: str,
    limit: int = 10,
    *,
    exact: bool = False,
    unit: Literal["c", "f"] = "c",
    tags: list[str] | None = None,
) -> str:
    """Search the catalogue.

    More than the model is told.

    Args:
        query: what to look for,
            over two lines.
        limit (int): how many: at most 100.

    Returns:
        tags: not a parameter's description.
    """
    return f"{query} {limit} {exact} {unit} {tags}"


def test_signature_and_docstring_become_the_description():
    assert search.spec == ToolSpec(
        "search",
        "Search the catalogue.",
        {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "what to look for, over two lines."},
                "limit": {
                    "type": "integer",
                    "description": "how many: at most 100.",
                    "default": 10,
                },
                "exact": {"type": "boolean", "default": False},
                "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["query"],
        },
    )


def test_a_tool_is_called_as_its_function():
    assert search("a", limit=2) == "a 2 False c None"


def described(annotation: Any) -> dict[str, Any]:
    def function(value): ...

    function.__annotations__ = {"value": annotation}
    return tool(function).spec.parameters["properties"]["value"]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (float, {"type": "number"}),
        (list, {"type": "array"}),
        (typing.List, {"type": "array"}),  # noqa: UP006 - the older spelling is the case
        (Annotated[int, {"ge": 0}], {"type": "integer"}),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (
            list[list[bool]],
            {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}},
        ),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (Optional[int], {"type": "integer"}),  # noqa: UP045 - the older spelling is the case
        (int | str | None, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (Annotated[str, "a city", True], {"type": "string", "description": "a city"}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        (Any, {}),
    ],
)
def test_a_type_is_described_as_json_schema(annotation, schema):
    assert described(annotation) == schema


@pytest.mark.parametrize("annotation", [set[int], bytes, dict[int, str], [int], "Unknown"])
def test_a_type_that_json_lacks_is_refused_with_the_remedy(annotation):
    with pytest.raises(InvalidToolError, match=r"function.*Tool\(spec="):
        described(annotation)


def test_a_method_is_described_without_self():
    class Store:
        def price(self, item: str) -> float:
            return 1.5

    described = tool(Store().price)
    assert list(described.spec.parameters["properties"]) == ["item"]
    assert described(item="tea") == 1.5


async def later(city: str) -> str:
    return city


@pytest.mark.parametrize(
    "function",
    [
        lambda *cities: "",
        lambda **options: "",
        lambda city, /: "",
        later,
        functools.partial(max),
        5,
    ],
)
def test_what_cannot_be_called_by_keywords_is_refused(function):
    with pytest.raises(InvalidToolError):
        tool(function)


def test_an_explicit_description_needs_no_signature():
    explicit = Tool(ToolSpec("largest"), max)
    assert as_tool(explicit) is explicit
    assert explicit(1, 2) == 2
    with pytest.raises(InvalidToolError, match="cannot be called"):
        Tool(ToolSpec("largest"), 5)
