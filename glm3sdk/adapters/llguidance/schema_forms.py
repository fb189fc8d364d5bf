"""A JSON Schema as alternatives that have no references and no combinations left."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import attrs

from glm3sdk.adapters.llguidance.schema_keywords import TYPES, assertions, pointer, unsupported
from glm3sdk.domain.metrics import same_json
from glm3sdk.errors import InvalidConstraintError

# A schema that refers to itself allows values of any depth; a reply is cut off here.
MOST_REFERENCES = 12
_MOST_FORMS = 256

_COMBINATIONS = ("$ref", "allOf", "anyOf", "oneOf")
_IMPLIED = {
    "object": {"additionalProperties", "maxProperties", "minProperties", "properties", "required"},
    "array": {"items", "maxItems", "minItems", "prefixItems"},
    "string": {"format", "maxLength", "minLength", "patterns"},
    "number": {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"},
}


@attrs.frozen
class Form:
    """One way to satisfy a schema: keywords that all apply, none of them a combination.

    `const` has become an `enum`, and `pattern` a list `patterns`.

    Attributes:
        keywords: the keywords.
        place: where they stand, as a JSON pointer.
        references: `$ref`s that were followed to get here.
    """

    keywords: Mapping[str, Any]
    place: str
    references: int

    @property
    def allowed_types(self) -> frozenset[str]:
        """The types that the schema allows; integers are numbers too."""
        kinds = self.keywords.get("type", TYPES)
        return frozenset([kinds] if isinstance(kinds, str) else kinds)

    @property
    def written_types(self) -> tuple[str, ...]:
        """The types to write: without `type`, those that the other keywords speak of."""
        if "type" not in self.keywords:
            implied = [kind for kind, words in _IMPLIED.items() if words & set(self.keywords)]
            if implied:
                return tuple(implied)
        kinds = self.allowed_types
        return tuple(sorted(kinds - {"integer"} if "number" in kinds else kinds))

    def number(self, keyword: str) -> Decimal | None:
        """A bound as the decimal number that the schema says."""
        value = self.keywords.get(keyword)
        return None if value is None else Decimal(repr(value))


class SchemaForms:
    """Takes the schemas of one document apart.

    Args:
        root: the whole schema, in which references are looked up.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def of(self, schema: Any, place: str, references: int = 0) -> list[Form]:
        """The alternatives that together allow exactly what the schema allows; maybe none.

        Raises:
            UnsupportedSchemaError: a combination that cannot be taken apart.
            InvalidConstraintError: no schema.
        """
        if schema is False:
            return []
        found = {} if schema is True else assertions(schema, place)
        own = {key: value for key, value in found.items() if key not in _COMBINATIONS}
        if "const" in own:
            const = own.pop("const")
            own["enum"] = [v for v in own.get("enum", [const]) if same_json(v, const)]
        if "pattern" in own:
            own["patterns"] = [own.pop("pattern")]
        forms = [Form(own, place, references)]
        for keyword in _COMBINATIONS:
            if keyword in found:
                for options in self._options(keyword, found[keyword], place, references):
                    forms = self._both(forms, options, pointer(place, keyword))
        return forms

    def allows(self, form: Form, value: Any) -> bool:
        """Whether a form allows a value that stands in the schema (an `enum`)."""
        words = form.keywords
        kinds = form.allowed_types
        if not any(_is_of_type(value, kind) for kind in kinds):
            return False
        if "enum" in words and not any(same_json(value, each) for each in words["enum"]):
            return False
        if isinstance(value, str):
            length = words.get("minLength", 0) <= len(value) <= words.get("maxLength", math.inf)
            return length and all(re.search(each, value) for each in words.get("patterns", ()))
        if isinstance(value, int | float) and not isinstance(value, bool):
            exact = Decimal(repr(value))
            return all(
                bound is None or holds(exact, bound)
                for bound, holds in ((form.number(key), test) for key, test in _BOUNDS.items())
            )
        if isinstance(value, list | tuple):
            prefix = words.get("prefixItems", ())
            schemas = [*prefix, *[words.get("items", True)] * (len(value) - len(prefix))]
            count = words.get("minItems", 0) <= len(value) <= words.get("maxItems", math.inf)
            items = zip(schemas, value, strict=False)
            return count and all(self._any(schema, item, form) for schema, item in items)
        if isinstance(value, Mapping):
            named, other = words.get("properties", {}), words.get("additionalProperties", True)
            least, most = words.get("minProperties", 0), words.get("maxProperties", math.inf)
            return (
                least <= len(value) <= most
                and value.keys() >= set(words.get("required", ()))
                and all(self._any(named.get(key, other), v, form) for key, v in value.items())
            )
        return True

    def _any(self, schema: Any, value: Any, parent: Form) -> bool:
        forms = self.of(schema, parent.place, parent.references)
        return any(self.allows(form, value) for form in forms)

    def _options(
        self, keyword: str, value: Any, place: str, references: int
    ) -> Iterable[list[Form]]:
        if keyword == "$ref":
            yield self._referred(value, place, references)
            return
        here = pointer(place, keyword)
        branches = [
            self.of(schema, pointer(here, number), references)
            for number, schema in enumerate(value)
        ]
        if keyword == "allOf":
            yield from branches
            return
        if keyword == "oneOf":
            for left, right in itertools.combinations(branches, 2):
                if not all(self._apart(a, b) for a in left for b in right):
                    raise unsupported(
                        place, keyword, "oneOf whose branches may hold at once cannot be enforced"
                    )
        yield [form for branch in branches for form in branch]

    def _referred(self, reference: str, place: str, references: int) -> list[Form]:
        schema = self.target(reference, place)
        if references >= MOST_REFERENCES:
            return []
        return self.of(schema, reference, references + 1)

    def target(self, reference: str, place: str) -> Any:
        """The schema that a `$ref` names.

        Raises:
            InvalidConstraintError: it names nothing in this schema.
        """
        found: Any = self._root
        steps = reference.split("/")
        if steps[0] == "#":
            for step in steps[1:]:
                key = step.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                    found = found[int(key)]
                elif isinstance(found, Mapping) and key in found:
                    found = found[key]
                else:
                    break
            else:
                if isinstance(found, bool | Mapping):
                    return found
        raise InvalidConstraintError(
            f"the JSON Schema at {pointer(place, '$ref')}: {reference!r} names no schema in it; "
            "write it as '#/$defs/name'"
        )

    def _both(self, left: list[Form], right: list[Form], place: str) -> list[Form]:
        if len(left) * len(right) > _MOST_FORMS:
            raise InvalidConstraintError(
                f"the JSON Schema at {place}: it multiplies out to more than {_MOST_FORMS} "
                "alternatives; write it with fewer combinations"
            )
        merged = (_merged(a, b) for a in left for b in right)
        return [form for form in merged if form is not None]

    def _apart(self, left: Form, right: Form) -> bool:
        """Whether it is sure that no value satisfies both forms."""
        kinds = [
            form.allowed_types | ({"integer"} if "number" in form.allowed_types else set())
            for form in (left, right)
        ]
        if not kinds[0] & kinds[1]:
            return True
        for form, other in ((left, right), (right, left)):
            if "enum" in form.keywords:
                return not any(self.allows(other, value) for value in form.keywords["enum"])
        return kinds[0] & kinds[1] == {"object"} and self._objects_apart(left, right)

    def _objects_apart(self, left: Form, right: Form) -> bool:
        names = {*left.keywords.get("required", ()), *right.keywords.get("required", ())}
        for name in names:
            sides = []
            for form in (left, right):
                other = form.keywords.get("additionalProperties", True)
                schema = form.keywords.get("properties", {}).get(name, other)
                sides.append(self.of(schema, form.place, form.references))
            # Where only one side needs the name, the other must not allow it at all.
            if all(self._apart(a, b) for a in sides[0] for b in sides[1]) and all(
                name in form.keywords.get("required", ()) or not side
                for form, side in zip((left, right), sides, strict=True)
            ):
                return True
        return False


_BOUNDS: Mapping[str, Callable[[Decimal, Decimal], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": lambda value, bound: value % bound == 0,
}


def _is_of_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    if isinstance(value, str):
        return kind == "string"
    return kind == ("array" if isinstance(value, list | tuple) else "object")


def _merged(left: Form, right: Form) -> Form | None:
    """A form that asks for both; None where nothing satisfies both."""
    place, words = left.place, dict(left.keywords)
    for side, other in ((left, right), (right, left)):
        if "prefixItems" in side.keywords and {"items", "prefixItems"} & other.keywords.keys():
            raise unsupported(
                place, "prefixItems", "prefixItems and other items cannot be enforced"
            )
    for keyword, value in right.keywords.items():
        if keyword not in words:
            words[keyword] = value
        elif keyword not in ("properties", "additionalProperties"):
            words[keyword] = _together(keyword, words[keyword], value, place)
    if "type" in words and not words["type"]:
        return None
    words.update(_properties(left.keywords, right.keywords))
    return Form(words, place, max(left.references, right.references))


def _together(keyword: str, left: Any, right: Any, place: str) -> Any:
    if same_json(left, right):
        return left
    match keyword:
        case "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties":
            return max(left, right)
        case "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties":
            return min(left, right)
        case "enum":
            return [value for value in left if any(same_json(value, other) for other in right)]
        case "required" | "patterns":
            return [*left, *(each for each in right if each not in left)]
        case "items":
            return {"allOf": [left, right]}
        case "type":
            return _common_types(left, right)
        case "multipleOf" if left == int(left) and right == int(right):
            return math.lcm(int(left), int(right))
    raise unsupported(place, keyword, f"{keyword!r} together with another one cannot be enforced")


def _common_types(left: Any, right: Any) -> list[str]:
    sides = [{side} if isinstance(side, str) else set(side) for side in (left, right)]
    for side in sides:
        if "number" in side:
            side.add("integer")
    common = sides[0] & sides[1]
    return sorted(common - {"integer"} if "number" in common else common)


def _properties(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of two schemas that both apply; what one does not name is additional to it."""
    if not all({"properties", "additionalProperties"} & side.keys() for side in (left, right)):
        return {}
    named = [side.get("properties", {}) for side in (left, right)]
    others = [side.get("additionalProperties", True) for side in (left, right)]
    found: dict[str, Any] = {
        "properties": {
            name: {"allOf": [named[0].get(name, others[0]), named[1].get(name, others[1])]}
            for name in {**named[0], **named[1]}
        }
    }
    if others != [True, True]:
        found["additionalProperties"] = {"allOf": others}
    return found
