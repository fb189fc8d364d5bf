"""A constraint as a grammar of llguidance's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from glm3sdk.adapters.llguidance.literals import JSON, PYTHON
from glm3sdk.adapters.llguidance.schema_rules import MatchesAny, Rules, SchemaRules
from glm3sdk.domain.chat import ToolSpec
from glm3sdk.domain.constraints import (
    CallRule,
    Choice,
    Constraint,
    Grammar,
    JsonSchema,
    Regex,
    ToolCalls,
)
from glm3sdk.domain.replies import INTERPRETER, is_tool_name
from glm3sdk.errors import InvalidToolError

# A turn of text: empty metadata, and the rest.
_BLANK_TURN = r"/ ?\n(?s:.*)/"


def grammar_of(
    constraint: Constraint | ToolCalls,
    *,
    opening: str,
    prefix: str,
    next_turn_id: int,
    matches: MatchesAny,
    escape: Callable[[str], str],
) -> str:
    """Write a constraint as the text that llguidance takes.

    Args:
        constraint: what may be written.
        opening: text that stands before it.
        prefix: what the tokenizer puts before a text of its own.
        next_turn_id: the id that begins a further turn of a reply.
        matches: says whether any text matches the body of a terminal.
        escape: makes a pattern fit between slashes.
    """
    begin = json.dumps(opening)
    rules: Rules = {}
    match constraint:
        case Grammar(lark):
            # A grammar of its own: names in it cannot clash with ours.
            grammars = [
                {"lark_grammar": f"start: {begin} @reply"},
                {"name": "reply", "lark_grammar": lark},
            ]
            return json.dumps({"grammars": grammars})
        case Regex(pattern):
            rules = {"start": f"{begin} T", "T": f"/{escape(pattern)}/"}
        case Choice(options):
            words = (json.dumps(option) for option in options)
            rules = {"start": f"{begin} ({' | '.join(words)})"}
        case JsonSchema(schema):
            writer = SchemaRules(schema, literals=JSON, rules=rules, matches=matches)
            rules["start"] = f"{begin} {writer.root()}"
        case ToolCalls(rule, tools):
            calls = _calls(tools, prefix, rules, matches)
            turn = f"TURN | {calls}" if calls else "TURN"
            rules["start"] = calls if rule is CallRule.MUST else f"turn (<[{next_turn_id}]> turn)*"
            if rule is not CallRule.MUST:
                rules.update(turn=turn, TURN=_BLANK_TURN)
    return _lark(rules)


def _calls(tools: Iterable[ToolSpec], prefix: str, rules: Rules, matches: MatchesAny) -> str:
    """The rule of a turn that calls one of the tools."""
    calls = []
    for tool in tools:
        if not is_tool_name(tool.name):
            raise InvalidToolError(
                f"tool {tool.name!r}: the model calls a tool by a name of letters, digits, '_', "
                "'-' and '.', at most 64 of them; rename it, or leave tool_choice out"
            )
        # Metadata and content, each with the prefix of a text of its own.
        head = f"{prefix}{tool.name}\n{prefix}```python\n"
        if tool.name == INTERPRETER:
            # As little as there may be before the first fence that closes it.
            rules['code[suffix="\\n```"]'] = r"/\s*\S(?s:.*)/"
            calls.append(f"{json.dumps(head)} code")
            continue
        place = f"{tool.name}#"
        schema: Mapping[str, object] = tool.parameters or {"type": "object"}
        writer = SchemaRules(schema, literals=PYTHON, rules=rules, matches=matches, place=place)
        head = json.dumps(f"{head}tool_call(")
        calls.append(f'{head} {writer.arguments()} ")\\n```"')
    return " | ".join(calls)


def _lark(rules: Rules) -> str:
    return "\n".join(f"{name}: {body}" for name, body in rules.items()) + "\n"
