"""A JSON Schema as grammar rules for values that are written as JSON or as Python literals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from glm3sdk.adapters.llguidance.literals import Literals
from glm3sdk.adapters.llguidance.numbers import integer_bounds, number_pattern
from glm3sdk.adapters.llguidance.patterns import FORMATS, whole_match
from glm3sdk.adapters.llguidance.schema_forms import Form, SchemaForms
from glm3sdk.adapters.llguidance.schema_keywords import pointer, unsupported
from glm3sdk.errors import InvalidConstraintError

# How deep values may be nested of which a schema says nothing.
_FREE_DEPTH = 3

Rules = dict[str, str]
MatchesAny = Callable[[str], bool]


class SchemaRules:
    """Writes the rules of one schema; the same text becomes a rule once.

    Args:
        schema: the whole schema.
        literals: how values are written.
        rules: where rules and terminals go: name to body.
        matches: says whether any text matches the body of a terminal; raises a ValueError
            where that is no pattern.
        place: what error messages call the schema's root.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        literals: Literals,
        rules: Rules,
        matches: MatchesAny,
        place: str = "#",
    ) -> None:
        self._forms = SchemaForms(schema)
        self._schema = schema
        self._literals = literals
        self._rules = rules
        self._names = {body: name for name, body in rules.items()}
        self._matches = matches
        self._quotes = literals.quotes
        self._place = place
        self._referred: dict[tuple[str, int], str | None] = {}

    def root(self) -> str:
        """The rule of the whole schema.

        Raises:
            InvalidConstraintError: the schema cannot be used, or allows no value.
            UnsupportedSchemaError: a keyword that cannot be enforced.
        """
        return self._some(self._value(self._schema, self._place, 0))

    def arguments(self) -> str:
        """The rule of a call's keyword arguments, when the schema is of an object."""
        member = _Keyword(self._literals)
        forms = self._forms.of(self._schema, self._place)
        options = [self._members(each, member) for each in forms if "object" in each.allowed_types]
        return self._some(self._either(options))

    def _some(self, name: str | None) -> str:
        if name is None:
            raise InvalidConstraintError(
                f"the JSON Schema at {self._place}: there is no value that it allows"
            )
        return name

    def _value(self, schema: Any, place: str, references: int) -> str | None:
        """The rule of a schema's values, or None where it allows none."""
        key = None
        if isinstance(schema, Mapping) and not schema.keys() - {"$ref", "description", "title"}:
            key = (str(schema.get("$ref")), references)
            if key in self._referred:
                return self._referred[key]
        forms = self._forms.of(schema, place, references)
        rule = self._either([self._form(form) for form in forms])
        if key is not None:
            self._referred[key] = rule
        return rule

    def _form(self, form: Form) -> str | None:
        if "enum" in form.keywords:
            return self._enum(form)
        writers = {
            "array": self._array,
            "boolean": lambda _: (
                f"{_quoted(self._literals.true)} | {_quoted(self._literals.false)}"
            ),
            "integer": self._number,
            "null": lambda _: _quoted(self._literals.null),
            "number": self._number,
            "object": self._object,
            "string": self._string,
        }
        if not form.keywords:
            return self._anything(_FREE_DEPTH)
        return self._either([writers[kind](form) for kind in form.written_types])

    def _enum(self, form: Form) -> str | None:
        texts: list[str] = []
        for value in form.keywords["enum"]:
            if self._forms.allows(form, value):
                try:
                    texts += self._literals.spellings(value)
                except ValueError as exc:
                    raise InvalidConstraintError(
                        f"the JSON Schema at {pointer(form.place, 'enum')}: {value!r:.60} cannot "
                        f"be written: {exc}"
                    ) from exc
        return self._either(map(_quoted, texts))

    def _number(self, form: Form) -> str | None:
        low, high = form.number("minimum"), form.number("maximum")
        over, under = form.number("exclusiveMinimum"), form.number("exclusiveMaximum")
        above = over is not None and (low is None or over >= low)
        below = under is not None and (high is None or under <= high)
        low, high = (over if above else low), (under if below else high)
        integer = "number" not in form.allowed_types
        step = form.keywords.get("multipleOf")
        if step is None:
            pattern = number_pattern(low, high, above=above, below=below, integer=integer)
            return None if pattern is None else self._terminal(f"/{pattern}/")
        if step != int(step):
            raise unsupported(form.place, "multipleOf", f"steps of {step!r} cannot be enforced")
        least, greatest = integer_bounds(low, high, above=above, below=below)
        if -(-least // int(step)) * int(step) > greatest:
            return None
        bounds = {"type": "integer", "minimum": least, "maximum": greatest, "multipleOf": int(step)}
        return self._rule(f"%json {json.dumps(bounds)}")

    def _string(self, form: Form) -> str | None:
        words = form.keywords
        low, high = int(words.get("minLength", 0)), words.get("maxLength")
        if high is not None and high < low:
            return None
        count = f"{{{low},{'' if high is None else int(high)}}}"
        patterns = list(_patterns(words, form.place))
        if not patterns:
            character = self._literals.character
            options = (f"/{quote}{character(quote)}{count}{quote}/" for quote in self._quotes)
            return self._terminal(" | ".join(options))
        # With a pattern a string is written without escapes.
        bodies = [f"/{pattern}/" for _, pattern in patterns] + [f"/(?s:.){count}/"]
        keyword = patterns[0][0]
        try:
            if not self._matches(" & ".join(bodies)):
                return None
        except ValueError as exc:
            raise InvalidConstraintError(
                f"the JSON Schema at {pointer(form.place, keyword)}: {exc}"
            ) from exc
        plain = {q: [*bodies, f"/{self._literals.unescaped(q)}*/"] for q in self._quotes}
        written = [
            f"{_quoted(quote)} ({' & '.join(each)}) {_quoted(quote)}"
            for quote, each in plain.items()
            if self._matches(" & ".join(each))
        ]
        if not written:
            reason = "a pattern whose text needs escapes cannot be enforced"
            raise unsupported(form.place, keyword, reason)
        return self._terminal(" | ".join(written))

    def _array(self, form: Form) -> str | None:
        words, place = form.keywords, form.place
        least, most = int(words.get("minItems", 0)), words.get("maxItems")
        prefix = [
            self._value(schema, pointer(place, "prefixItems", number), form.references)
            for number, schema in enumerate(words.get("prefixItems", ()))
        ]
        known: list[str] = []
        for rule in prefix:
            if rule is None:
                most = len(known) if most is None else min(most, len(known))
                break
            known.append(rule)
        item = self._value(words.get("items", True), pointer(place, "items"), form.references)
        if item is None:
            most = len(known) if most is None else min(most, len(known))
        if most is not None:
            known = known[: int(most)]
        if most is not None and least > most:
            return None
        # The rest of the list from each place on, from the end.
        rest = ""
        if item is not None and (most is None or most > len(known)):
            fewest = max(0, least - len(known) - (not known))
            highest = None if most is None else int(most) - len(known) - (not known)
            rest = _repeated(f'", " {item}', fewest, highest)
            if not known:
                rest = f"{item} {rest}"
                rest = rest if least else f"({rest})?"
        for number in range(len(known) - 1, -1, -1):
            separator = '", " ' if number else ""
            rest = f"{separator}{known[number]} {rest}".strip()
            rest = rest if number < least else f"({rest})?"
        return self._rule(f'"[" {rest} "]"')

    def _object(self, form: Form) -> str | None:
        members = self._members(form, _Entry(self._literals))
        return None if members is None else self._rule(f'"{{" {members} "}}"')

    def _members(self, form: Form, member: _Entry) -> str | None:
        words, place = form.keywords, form.place
        other = words.get("additionalProperties", True)
        required = list(words.get("required", ()))
        schemas = dict(words.get("properties", {}))
        schemas.update({name: other for name in required if name not in schemas})
        if not schemas:
            return self._free_members(form, other, member)
        written = []
        for name, schema in schemas.items():
            value = self._value(schema, pointer(place, "properties", name), form.references)
            if value is not None:
                written.append((member.named(name, value), name in required))
            elif name in required:
                return None
        least, most = words.get("minProperties", 0), words.get("maxProperties")
        if least > len(required) or (most is not None and most < len(written)):
            keyword = "minProperties" if least > len(required) else "maxProperties"
            raise unsupported(place, keyword, f"{keyword} beside properties cannot be enforced")
        return self._in_order(written)

    def _in_order(self, members: list[tuple[str, bool]]) -> str:
        """Members in their order, the optional ones or not, with commas between them."""
        first, rest = '""', '""'
        for text, required in reversed(members):
            alone = self._rule(f"{text} {rest}")
            before = first if required else f"{first} | {alone}"
            first = alone if required else self._rule(before)
            follows = f'", " {text} {rest}'
            rest = self._rule(follows if required else f"{follows} | {rest}")
        return self._rule(first)

    def _free_members(self, form: Form, schema: Any, member: _Entry) -> str | None:
        """Members of any name; of two equal names the reader takes the last."""
        least, most = form.keywords.get("minProperties", 0), form.keywords.get("maxProperties")
        if most is not None and least > most:
            return None
        if least > 1:
            raise unsupported(
                form.place, "minProperties", "more than one free name is not enforced"
            )
        value = None
        if most != 0 and (member.free or "additionalProperties" in form.keywords):
            place = pointer(form.place, "additionalProperties")
            value = self._value(schema, place, form.references)
        if value is None:
            return None if least else self._rule('""')
        entry = f'{self._text()} ": " {value}'
        more = _repeated(f'", " {entry}', 0, None if most is None else int(most) - 1)
        several = member.together(f"{entry} {more}")
        return self._rule(several if least else f'({several}) | ""')

    def _anything(self, depth: int) -> str:
        words = [self._literals.true, self._literals.false, self._literals.null]
        number = number_pattern(None, None, above=False, below=False, integer=False)
        options = [*map(_quoted, words), self._text(), self._terminal(f"/{number}/")]
        if depth:
            inner = self._anything(depth - 1)
            options.append(f'"[" ({inner} (", " {inner})*)? "]"')
            entry = f'{self._text()} ": " {inner}'
            options.append(f'"{{" ({entry} (", " {entry})*)? "}}"')
        return self._rule(" | ".join(options))

    def _text(self) -> str:
        bodies = (
            f"/{quote}{self._literals.character(quote)}*{quote}/" for quote in self._literals.quotes
        )
        return self._terminal(" | ".join(bodies))

    def _either(self, options: Iterable[str | None]) -> str | None:
        found = [option for option in options if option is not None]
        return self._rule(" | ".join(dict.fromkeys(found))) if found else None

    def _rule(self, body: str) -> str:
        return body if body in self._rules else self._named("r", body)

    def _terminal(self, body: str) -> str:
        return self._named("T", body)

    def _named(self, letter: str, body: str) -> str:
        if body not in self._names:
            name = f"{letter}{len(self._rules)}"
            self._rules[name] = body
            self._names[body] = name
        return self._names[body]


class _Entry:
    """Members of a dict: `'name': value`."""

    free = True

    def __init__(self, literals: Literals) -> None:
        self._literals = literals

    def named(self, name: str, value: str) -> str:
        keys = (_quoted(f"{text}: ") for text in self._literals.spellings(name))
        return f"({' | '.join(keys)}) {value}"

    def together(self, entries: str) -> str:
        return entries


class _Keyword(_Entry):
    """Arguments of a call: `name=value`, or a dict where the name is no identifier.

    Without `additionalProperties` a call has only arguments that the schema names.
    """

    free = False

    def named(self, name: str, value: str) -> str:
        if name.isidentifier():
            return f"{_quoted(f'{name}=')} {value}"
        return f'"**{{" {super().named(name, value)} "}}"'

    def together(self, entries: str) -> str:
        return f'"**{{" {entries} "}}"'


def _patterns(words: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """Keyword and pattern of all that a string must match as a whole."""
    for pattern in words.get("patterns", ()):
        try:
            yield "pattern", whole_match(pattern)
        except ValueError as exc:
            raise unsupported(place, "pattern", f"{exc}, which cannot be enforced") from exc
    if words.get("format") in FORMATS:
        yield "format", FORMATS[words["format"]]


def _repeated(body: str, low: int, high: int | None) -> str:
    return "" if high == 0 else f"({body}){{{low},{'' if high is None else high}}}"


def _quoted(text: str) -> str:
    """A text as a string of the grammar."""
    return json.dumps(text)
