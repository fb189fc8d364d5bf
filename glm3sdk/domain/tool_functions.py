"""Python functions as tools: the description is read from signature and docstring."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs

from glm3sdk.domain.chat import ToolSpec
from glm3sdk.errors import InvalidToolError

_SIMPLE_TYPES: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    tuple: "array",
    dict: "object",
}

_ARGS_SECTION = re.compile(r"^(?:Args|Arguments|Parameters):\s*$")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


@attrs.frozen
class Tool:
    """A function with the description by which the model knows it; calling it calls that.

    Attributes:
        spec: what the model is told.
        function: takes the arguments as keywords. A str that it returns is passed on as
            it is, anything else as JSON where that is possible.
    """

    spec: ToolSpec
    function: Callable[..., Any] = attrs.field()

    @function.validator
    def _check_function(self, _: attrs.Attribute[Any], value: object) -> None:
        if not callable(value):
            raise InvalidToolError(f"tool {self.spec.name!r}: {value!r:.80} cannot be called")
        if inspect.iscoroutinefunction(value):
            raise InvalidToolError(
                f"tool {self.spec.name!r} is async; pass a function that runs it to its end"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def tool(function: Callable[..., Any]) -> Tool:
    """Describe a function for the model; also a decorator.

        @tool
        def get_weather(city: str, unit: Literal["c", "f"] = "c") -> str: ...

    The docstring's first line is the description, and the entries under `Args:` describe
    the parameters. A parameter without annotation takes any value; one without default is
    required.

    Args:
        function: its parameters may be annotated as str, int, float, bool, list, dict,
            `list[...]`, `Literal`, `Optional` (described as the type inside) and
            `Annotated[type, "description"]`.

    Returns:
        The function with its description, for `run_tools`; calling it calls the function.

    Raises:
        InvalidToolError: the signature cannot be described; write a `ToolSpec` by hand
            and pass `Tool(spec=..., function=...)`.
    """
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        raise InvalidToolError(
            f"{function!r:.80} is no function with a name; pass Tool(spec=..., function=...)"
        )
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError, ValueError) as exc:
        raise _indescribable(name, f"its signature cannot be read: {exc}") from exc
    description, documented = _read_docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise _indescribable(name, f"parameter {parameter} cannot be passed by name")
        schema = _schema(parameter.annotation, f"{name}({parameter.name})")
        if parameter.name in documented:
            schema["description"] = documented[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif parameter.default is not None and _is_json(parameter.default):
            schema["default"] = parameter.default
        properties[parameter.name] = schema
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(ToolSpec(name, description, parameters), function)


def as_tool(value: Tool | Callable[..., Any]) -> Tool:
    """Return a `Tool` as it is and describe a function.

    Raises:
        InvalidToolError: neither, or a function that cannot be described.
    """
    return value if isinstance(value, Tool) else tool(value)


def _schema(annotation: Any, where: str) -> dict[str, Any]:
    if annotation is inspect.Parameter.empty or annotation is Any:
        return {}
    origin, inner = get_origin(annotation), get_args(annotation)
    plain = annotation if origin is None or inner else origin  # List without what it holds
    if isinstance(plain, type) and plain in _SIMPLE_TYPES:
        return {"type": _SIMPLE_TYPES[plain]}
    if origin is Annotated:
        described = [each for each in inner[1:] if isinstance(each, str)]
        schema = _schema(inner[0], where)
        return {**schema, "description": described[0]} if described else schema
    if origin is Literal and _is_json(inner):
        kinds = {_SIMPLE_TYPES.get(type(value)) for value in inner}
        kind = kinds.pop() if len(kinds) == 1 else None
        return {**({"type": kind} if kind else {}), "enum": list(inner)}
    if origin in (Union, types.UnionType):
        choices = [_schema(each, where) for each in inner if each is not types.NoneType]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _schema(inner[1], where)}
    raise _indescribable(where, f"{annotation!r} is no type that JSON has")


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first line, and the parameters' descriptions in Google's style."""
    first, _, rest = text.partition("\n")
    documented: dict[str, str] = {}
    inside, indent, name = False, 0, ""
    for line in rest.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            inside, indent, name = bool(_ARGS_SECTION.match(line)), 0, ""
            continue
        if not inside:
            continue
        indent = indent or depth
        entry = _ARGUMENT.match(line.strip()) if depth == indent else None
        if entry:
            name = entry[1]
            documented[name] = entry[2].strip()
        elif name:
            documented[name] = f"{documented[name]} {line.strip()}".strip()
    return first.strip(), documented


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _indescribable(name: str, reason: str) -> InvalidToolError:
    return InvalidToolError(
        f"tool {name}: {reason}; write a ToolSpec and pass Tool(spec=..., function=...)"
    )
