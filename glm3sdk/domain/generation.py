"""How a reply is generated: parameters under the names that users know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from glm3sdk.domain.constraints import Choice, Constraint, Grammar, JsonSchema, Regex
from glm3sdk.errors import InvalidGenerationConfigError, UnsupportedOptionError


def _range(
    low: float | None = None,
    high: float | None = None,
    *,
    integer: bool = False,
    optional: bool = False,
    above_low: bool = False,
) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        kinds = int if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            wanted = "an integer" if integer else "a number"
            raise InvalidGenerationConfigError(f"{attribute.name} must be {wanted}, not {value!r}")
        below = low is not None and (value <= low if above_low else value < low)
        if not math.isfinite(value) or below or (high is not None and value > high):
            bounds = f"{'above' if above_low else 'at least'} {low}"
            bounds += f" and at most {high}" if high is not None else ""
            raise InvalidGenerationConfigError(f"{attribute.name} must be {bounds}, not {value!r}")

    return check


def _boolean(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidGenerationConfigError(f"{attribute.name} must be True or False, not {value!r}")


def _strings(value: object) -> tuple[str, ...]:
    parts: tuple[str, ...]
    parts = (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]  # checked next
    if not all(isinstance(part, str) and part for part in parts):
        raise InvalidGenerationConfigError(f"expected non-empty strings, got {value!r}")
    return parts


def _token_ids(value: object) -> tuple[int, ...]:
    ids: tuple[int, ...] = tuple(value)  # type: ignore[arg-type]  # checked next
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise InvalidGenerationConfigError(f"expected token ids (integers from 0), got {value!r}")
    return ids


def _biases(value: Mapping[int, float]) -> Mapping[int, float]:
    for token_id, bias in value.items():
        if not isinstance(token_id, int) or token_id < 0 or not math.isfinite(bias):
            raise InvalidGenerationConfigError(
                f"logit_bias maps token ids to finite numbers, not {token_id!r} to {bias!r}"
            )
    return dict(value)


def _constraint(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, JsonSchema | Regex | Choice | Grammar):
        raise InvalidGenerationConfigError(
            f"{attribute.name} must be a JsonSchema, Regex, Choice or Grammar, not {value!r:.80}"
        )


def _name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise InvalidGenerationConfigError(
            f"{attribute.name} must be 'auto', 'none', 'required' or a tool's name, not {value!r}"
        )


@attrs.frozen(kw_only=True)
class GenerationConfig:
    """Parameters of one generation; the defaults are the official model's chat defaults.

    Attributes:
        max_length: most tokens of prompt and reply together.
        max_new_tokens: most tokens of the reply; None leaves max_length as the only limit.
        min_length: fewest tokens of prompt and reply together before a stop id may come.
        min_new_tokens: fewest tokens of the reply before a stop id may come.
        do_sample: False takes the likeliest token each time (greedy).
        temperature: divides the logits; 0 means greedy.
        top_k: sample among the k likeliest tokens; 0 means all.
        top_p: sample among the likeliest tokens whose probabilities reach p together.
        repetition_penalty: above 1 makes tokens seen before less likely (CTRL, Keskar 2019).
        num_beams: beam search is not implemented; only 1 is accepted.
        seed: reproduces a sampled reply; None differs from call to call.
        stop: strings that end the reply; they are not part of it.
        stop_token_ids: further ids that end the reply, beside `</s>`, `<|user|>` and
            `<|observation|>`.
        bad_words: texts whose token sequence must not appear.
        logit_bias: token id to a number added to its logit.
        tool_choice: "required" or a tool's name makes the reply one call that fits the
            tool's schema; "auto" holds a call to it once the model opens one; "none" allows
            no call. None, the default, constrains nothing.
        constraint: what the whole reply may say; not together with tool_choice.
        prompt_lookup_num_tokens: most tokens to guess from the prompt and the reply so far
            and to verify in one step, while one reply runs alone; 0 guesses none. The text is
            the same, sooner where it repeats something; 7 suits OpenVINO.

    Raises:
        InvalidGenerationConfigError: a value is out of range.
        UnsupportedOptionError: num_beams above 1.
    """

    max_length: int = attrs.field(default=8192, validator=_range(1, integer=True))
    max_new_tokens: int | None = attrs.field(
        default=None, validator=_range(1, integer=True, optional=True)
    )
    min_length: int = attrs.field(default=0, validator=_range(0, integer=True))
    min_new_tokens: int = attrs.field(default=0, validator=_range(0, integer=True))
    do_sample: bool = attrs.field(default=True, validator=_boolean)
    temperature: float = attrs.field(default=0.8, validator=_range(0))
    top_k: int = attrs.field(default=0, validator=_range(0, integer=True))
    top_p: float = attrs.field(default=0.8, validator=_range(0, 1, above_low=True))
    repetition_penalty: float = attrs.field(default=1.0, validator=_range(0, above_low=True))
    num_beams: int = attrs.field(default=1, validator=_range(1, integer=True))
    seed: int | None = attrs.field(default=None, validator=_range(0, integer=True, optional=True))
    stop: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    stop_token_ids: tuple[int, ...] = attrs.field(default=(), converter=_token_ids)
    bad_words: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    logit_bias: Mapping[int, float] = attrs.field(factory=dict, converter=_biases, hash=False)
    tool_choice: str | None = attrs.field(default=None, validator=_name)
    constraint: Constraint | None = attrs.field(default=None, validator=_constraint)
    prompt_lookup_num_tokens: int = attrs.field(default=0, validator=_range(0, integer=True))

    def __attrs_post_init__(self) -> None:
        if self.num_beams > 1:
            raise UnsupportedOptionError(
                f"num_beams={self.num_beams}: beam search is not implemented; use num_beams=1"
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidGenerationConfigError(
                f"min_new_tokens={self.min_new_tokens} is above "
                f"max_new_tokens={self.max_new_tokens}"
            )
        if self.constraint is not None and self.tool_choice is not None:
            raise InvalidGenerationConfigError(
                f"tool_choice={self.tool_choice!r} and a constraint: a reply can be held to one "
                "of them; leave the other out"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return not self.do_sample or self.temperature == 0 or self.top_k == 1
