"""From the token ids of a generation to the events that its caller reads."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from glm3sdk.domain.chat import (
    Completion,
    CompletionEnd,
    Delta,
    FinishReason,
    IncompleteStructure,
    Message,
    Reply,
    ReplyEnd,
    TextDelta,
    TurnTokens,
    Usage,
)
from glm3sdk.domain.replies import ReplyParser, finish_reason
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.ports.constraint import ConstraintState
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.detokenizer import Detokenizer
from glm3sdk.services.stop_strings import StopStrings
from glm3sdk.services.structure import StructureCheck

# More than the bytes of any character: what a decoder needs to know of the text before.
_CONTEXT = 16


class _VisibleText:
    """The text of one turn as it may be shown, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        return self._stops.matched is not None

    def follow(self, prompt_ids: Sequence[int]) -> None:
        """Continue these ids, so that a space between prompt and text is not lost."""
        for token_id in prompt_ids[-_CONTEXT:]:
            self._detokenizer.push(token_id)

    def push(self, token_id: int) -> str:
        return self._stops.push(self._detokenizer.push(token_id))

    def finish(self) -> str:
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()


class ReplyStream:
    """The events of a chat reply: text, tool calls, and the reply with its history.

    Args:
        history: the conversation that the reply is appended to.
        tokenizer: decodes the ids.
        stops: strings that end the reply.
        structure: what the reply is held to, with nothing written; None for nothing.
    """

    def __init__(
        self,
        history: tuple[Message, ...],
        *,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        structure: ConstraintState | None = None,
    ) -> None:
        self._history = history
        self._structure = StructureCheck(structure)
        self._tokenizer = tokenizer
        self._stops = stops
        self._next_turn_id = tokenizer.special_id(SpecialToken.ASSISTANT)
        self._parser = ReplyParser()
        self._text = _VisibleText(tokenizer, stops)
        self._turns: list[list[int]] = [[]]

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._text.stopped

    def push(self, token_id: int) -> list[Delta]:
        """Take one more token id."""
        self._structure.push(token_id)
        if token_id != self._next_turn_id:
            self._turns[-1].append(token_id)
            return self._parser.feed(self._text.push(token_id))
        events = self._parser.feed(self._text.finish())
        if not self.stopped:
            self._turns.append([])
            self._text = _VisibleText(self._tokenizer, self._stops)
            events += self._parser.next_turn()
        return events

    def finish(self, reason: FinishReason, usage: Usage) -> list[Delta]:
        """Return the events that were held back, and the `ReplyEnd`."""
        events = self._parser.feed(self._text.finish())
        if self.stopped:
            reason = FinishReason.STOP
        events += self._parser.finish(complete=reason is FinishReason.STOP)
        parts = self._parser.parts
        incomplete = None
        if not self._structure.complete(cut=self.stopped):
            metadata, content = self._parser.turns[-1]
            raw = f"{metadata}\n{content}" if metadata else content
            incomplete = IncompleteStructure(raw, reason)
        if reason is FinishReason.STOP:
            reason = finish_reason(parts)
        history = (*self._history, *self._messages())
        events.append(ReplyEnd(Reply(parts, reason, usage, history, incomplete)))
        return events

    def _messages(self) -> list[Message]:
        messages = []
        turns = self._parser.turns
        for (metadata, content), ids in zip(turns, self._turns, strict=True):
            message = Message.assistant(content, metadata=metadata)
            # Behind a stop string the ids say more than the text.
            if not (self.stopped and ids is self._turns[-1]):
                tokens = TurnTokens(tuple(ids), metadata, content, self._tokenizer.fingerprint)
                message = attrs.evolve(message, tokens=tokens)
            messages.append(message)
        return messages


class CompletionStream:
    """The events of a raw completion: text, then the completion.

    Args:
        prompt_ids: what the completion's text goes on with; empty where it begins anew.
        tokenizer: decodes the ids.
        stops: strings that end the text.
        structure: what the text is held to, with nothing written; None for nothing.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        structure: ConstraintState | None = None,
    ) -> None:
        self._structure = StructureCheck(structure)
        self._text = _VisibleText(tokenizer, stops)
        self._text.follow(prompt_ids)
        self._shown: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._text.stopped

    def push(self, token_id: int) -> list[TextDelta | CompletionEnd]:
        """Take one more token id."""
        self._structure.push(token_id)
        return self._show(self._text.push(token_id))

    def finish(self, reason: FinishReason, usage: Usage) -> list[TextDelta | CompletionEnd]:
        """Return the text that was held back, and the `CompletionEnd`."""
        events = self._show(self._text.finish())
        if self.stopped:
            reason = FinishReason.STOP
        text, incomplete = "".join(self._shown), None
        if not self._structure.complete(cut=self.stopped):
            incomplete = IncompleteStructure(text, reason)
        events.append(CompletionEnd(Completion(text, reason, usage, incomplete)))
        return events

    def _show(self, text: str) -> list[TextDelta | CompletionEnd]:
        self._shown.append(text)
        return [TextDelta(text)] if text else []
