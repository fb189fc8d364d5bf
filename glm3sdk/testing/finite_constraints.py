"""Constraints without llguidance, for what has a list of all its texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from glm3sdk.domain.chat import ToolSpec
from glm3sdk.domain.constraints import CallRule, Choice, Constraint, JsonSchema, ToolCalls
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.domain.tool_calls import render_tool_call
from glm3sdk.errors import InvalidConstraintError, UnsupportedOptionError
from glm3sdk.ports.arrays import BoolArray
from glm3sdk.ports.constraint import StartConstraint
from glm3sdk.ports.tokenizer import Tokenizer, dummy_prefix, encode_continuation, piece_bytes

_CONTROLS = (0, 1, 2)


class FiniteConstraints:
    """A `ConstraintCompiler` in plain Python, for tests of embedding apps.

    It knows `Choice`, a `JsonSchema` that is an `enum`, and required calls of tools whose
    parameters are all required and have an `enum`.

    Args:
        tokenizer: the one that the service has.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        silent = {*_CONTROLS, *map(tokenizer.special_id, SpecialToken)}
        self._pieces = {
            token_id: piece_bytes(tokenizer.piece(token_id))
            for token_id in range(tokenizer.vocab_size)
            if token_id not in silent
        }

    def compile(self, constraint: Constraint | ToolCalls, *, opening: str = "") -> StartConstraint:
        """List the texts."""
        texts = [opening + text for text in self._texts(constraint)]
        written = {text.encode(): encode_continuation(self._tokenizer, text) for text in texts}
        return lambda: FiniteState(written, self._pieces)

    def _texts(self, constraint: Constraint | ToolCalls) -> Iterator[str]:
        match constraint:
            case Choice(options):
                yield from options
            case JsonSchema(schema) if "enum" in schema:
                yield from (json.dumps(value, ensure_ascii=False) for value in schema["enum"])
            case ToolCalls(CallRule.MUST, tools):
                prefix = dummy_prefix(self._tokenizer)
                for tool in tools:
                    for call in _calls(tool):
                        yield f"{prefix}{tool.name}\n{prefix}{call}"
            case _:
                raise UnsupportedOptionError(
                    f"FiniteConstraints has no list of the texts of {constraint!r:.80}; "
                    "use the constraints of glm3sdk[structured]"
                )


def _calls(tool: ToolSpec) -> Iterator[str]:
    properties = tool.parameters.get("properties", {})
    for values in itertools.product(*(schema["enum"] for schema in properties.values())):
        yield render_tool_call(dict(zip(properties, values, strict=True)))


class FiniteState:
    """A `ConstraintState` over a list of texts."""

    def __init__(self, texts: dict[bytes, list[int]], pieces: dict[int, bytes]) -> None:
        self._texts = texts
        self._pieces = pieces
        self._written: list[int] = []

    @property
    def complete(self) -> bool:
        """Whether one of the texts was written."""
        return self._text in self._texts

    @property
    def finished(self) -> bool:
        """Whether none of the texts goes on."""
        return self.complete and len(self._open()) == 1

    @property
    def _text(self) -> bytes:
        return b"".join(self._pieces[token_id] for token_id in self._written)

    def fill_mask(self, allowed: BoolArray) -> None:
        """Write which ids may come next into `allowed` `[V]`."""
        allowed[:] = False
        written, texts = self._text, self._open()
        ids = self.forced()[:1] or self._pieces
        for token_id in ids:
            longer = written + self._pieces[token_id]
            allowed[token_id] = any(text.startswith(longer) for text in texts)

    def accept(self, token_id: int) -> None:
        """Take an allowed token."""
        piece = self._pieces.get(token_id, b"")
        if not piece or not any(text.startswith(self._text + piece) for text in self._texts):
            raise InvalidConstraintError(f"token {token_id} is not allowed after {self._text!r}")
        self._written.append(token_id)

    def forced(self) -> Sequence[int]:
        """What all texts have in common, as the tokenizer cuts them."""
        count = len(self._written)
        rests = [self._texts[text] for text in self._open()]
        if self.complete or any(ids[:count] != self._written for ids in rests):
            return []
        together = itertools.takewhile(
            lambda ids: len(set(ids)) == 1, zip(*(ids[count:] for ids in rests), strict=False)
        )
        return [ids[0] for ids in together]

    def _open(self) -> list[bytes]:
        written = self._text
        return [text for text in self._texts if text.startswith(written)]
