"""The requests, under OpenAI's names.

Parameters that are not listed are ignored. Those that would change the answer's meaning and
that nothing here honours are listed, so that they can be refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from glm3sdk.domain.constraints import CallRule

_Text = Annotated[str, Field(max_length=2**20)]
_Count = Annotated[int, Field(ge=1, le=2**31)]

MOST_CHOICES = 128
MOST_TOP_LOGPROBS = 20
# Each message is at least three tokens, so that no context holds more.
MOST_MESSAGES = 2**15

_RULES = {str(rule) for rule in CallRule}


def _refused(name: str, remedy: str) -> ValueError:
    return ValueError(f"{name} is not supported by this server; {remedy}")


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = False


class _Generation(BaseModel):
    """What both kinds of requests have in common."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] | None = None
    logit_bias: (
        dict[
            Annotated[int, Field(ge=0, lt=2**31)],
            Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
        ]
        | None
    ) = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # Not OpenAI's: parameters of this model's family under the names that they have elsewhere.
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("only 0 is supported by this server; try repetition_penalty")
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        return self

    @property
    def choices(self) -> int:
        """Replies to one prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class NamedFunction(BaseModel):
    """A tool's name."""

    name: Annotated[str, Field(min_length=1, max_length=256)]


class NamedTool(BaseModel):
    """A tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(max_length=MOST_MESSAGES)]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None

    @field_validator("functions", "function_call")
    @classmethod
    def _no_functions(cls, value: Any) -> Any:
        if value is not None:
            raise _refused("functions", "use tools and tool_choice")
        return value

    @field_validator("audio", "web_search_options")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        if value is not None:
            raise _refused("this", "leave it out")
        return value

    @field_validator("modalities")
    @classmethod
    def _text_modality(cls, value: list[str] | None) -> list[str] | None:
        if value not in (None, ["text"]):
            raise ValueError("only ['text'] is supported by this server")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _a_name(cls, value: str | NamedTool | None) -> str | NamedTool | None:
        if isinstance(value, NamedTool) and value.function.name in _RULES:
            raise ValueError(f"a tool named {value.function.name!r} cannot be asked for; rename it")
        return value

    @model_validator(mode="after")
    def _logprobs_for_top(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is only allowed with logprobs=true")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of each reply."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: _Text | Annotated[list[_Text], Field(min_length=1, max_length=MOST_CHOICES)]
    max_tokens: _Count | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: bool | None = False
    best_of: int | None = None
    suffix: str | None = None

    @field_validator("echo")
    @classmethod
    def _no_echo(cls, value: bool | None) -> bool | None:
        if value:
            raise _refused("echo", "put the prompt before the text yourself")
        return value

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> str | None:
        if value:
            raise _refused("suffix", "leave it out")
        return value

    @model_validator(mode="after")
    def _best_of_all(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise _refused("best_of", "ask for n and choose")
        return self

    @property
    def prompts(self) -> list[str]:
        """The texts to go on with."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt
