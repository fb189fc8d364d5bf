"""A model runtime that plays replies from a script, for tests of embedding apps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeAlias

import attrs
import numpy as np

from glm3sdk.domain.chat import Message
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import ServiceClosedError, UserError
from glm3sdk.ports.arrays import FloatArray, IntArray
from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.ports.slots import SlotTable
from glm3sdk.ports.tokenizer import Tokenizer

ScriptedReply: TypeAlias = str | Message | Sequence[int | str | Message | SpecialToken]
"""Text, an assistant message (its metadata calls a tool), or a sequence of these and ids."""

_EOS_ID = 2
# Far above the noise, so that sampling at any usual temperature follows the script.
_SCRIPT_LOGIT = 100.0


@attrs.frozen
class Prefill:
    """A recorded call: tokens appended to a slot."""

    slot: int
    input_ids: tuple[int, ...]


@attrs.frozen
class Decode:
    """A recorded call: one token appended to each slot."""

    slots: tuple[int, ...]
    token_ids: tuple[int, ...]


@attrs.frozen
class Truncate:
    """A recorded call: a slot cut to a length."""

    slot: int
    length: int


@attrs.frozen
class Copy:
    """A recorded call: a prefix given to another slot."""

    source: int
    target: int
    length: int


Call: TypeAlias = Prefill | Decode | Truncate | Copy


class ScriptedRuntime:
    """A `ModelRuntime` whose replies are written down beforehand.

        service = Glm3Service(runtime=ScriptedRuntime("你好"), tokenizer=tokenizer)

    Each request plays the next reply, and after the last the first one again. A request
    begins where a prefill meets an empty slot, or one that was truncated or copied to since
    its last prefill, or one that was decoded and is now given a special token or eos.
    Prefills in a row are one prompt in chunks, and a prefill of text after a decode goes on
    with the reply, as forced tokens do. So does a prefill for all logits, which verifies
    guessed tokens, and what follows when some of these were cut off again. Within a request
    the logits depend on the slot's tokens alone: the likeliest token is the one after the
    longest beginning of the reply with which they end, so that verifying guessed tokens or
    replaying a prefix works as with a model. A reply ends with eos (2).

    Text is encoded as the model writes a turn: a newline and the text, each encoded by
    itself; a message has its metadata before the newline. `SpecialToken.ASSISTANT` goes
    between two turns and `SpecialToken.OBSERVATION` after a tool call.

    Args:
        replies: at least one.
        tokenizer: encodes the text; it must be the one that the service has. Default:
            `glm3sdk.testing.fake_tokenizer.CharacterTokenizer()`.
        config: the model's hyper-parameters; by default a vocabulary that fits.

    Attributes:
        calls: every call that succeeded, over all sessions, in order.
        turn_ids: ids that show a prompt where text was decoded before.

    Raises:
        UserError: no reply, or a reply's id is outside the vocabulary.
    """

    def __init__(
        self,
        *replies: ScriptedReply,
        tokenizer: Tokenizer | None = None,
        config: Glm3Config | None = None,
    ) -> None:
        if not replies:
            raise UserError('a script needs at least one reply, such as ScriptedRuntime("hi")')
        if tokenizer is None:
            from glm3sdk.testing.fake_tokenizer import CharacterTokenizer

            tokenizer = CharacterTokenizer()
        self._config = config or attrs.evolve(
            Glm3Config.preset("tiny"), padded_vocab_size=tokenizer.vocab_size, seq_length=8192
        )
        self._script = tuple((*_reply_ids(reply, tokenizer), _EOS_ID) for reply in replies)
        ends = map(tokenizer.special_id, SpecialToken)
        self.turn_ids = frozenset({_EOS_ID, *ends})
        vocab_size = self._config.padded_vocab_size
        for token_id in {token_id for reply in self._script for token_id in reply}:
            if not 0 <= token_id < vocab_size:
                raise UserError(f"reply token id {token_id} is outside 0..{vocab_size - 1}")
        self._begun = 0
        self._closed = False
        self.calls: list[Call] = []

    @property
    def config(self) -> Glm3Config:
        """Hyper-parameters that no weights stand behind."""
        return self._config

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """Named "scripted"."""
        return RuntimeCapabilities(name="scripted", dtype="float32")

    def start_decode(self, *, slots: int, max_seq_length: int) -> ScriptedSession:
        """Start a session that plays this runtime's script."""
        if self._closed:
            raise ServiceClosedError("this runtime was closed; make another one")
        return ScriptedSession(
            self, SlotTable(self._config, slots=slots, max_seq_length=max_seq_length)
        )

    def next_reply(self) -> tuple[int, ...]:
        """Begin a request: the ids of the reply that it plays, eos last."""
        reply = self._script[self._begun % len(self._script)]
        self._begun += 1
        return reply

    def close(self) -> None:
        """Refuse further sessions."""
        self._closed = True


@attrs.define
class _Slot:
    tokens: tuple[int, ...] = ()
    reply: tuple[int, ...] = ()
    in_prompt: bool = False
    decoded: bool = False
    guesses_at: int | None = None


class ScriptedSession:
    """A decode session of a `ScriptedRuntime`."""

    def __init__(self, runtime: ScriptedRuntime, table: SlotTable) -> None:
        self._runtime = runtime
        self._table = table
        self._slots = [_Slot() for _ in range(table.slots)]

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._table.slots

    @property
    def max_seq_length(self) -> int:
        """Most tokens that a slot holds."""
        return self._table.max_seq_length

    def prefill(
        self, slot: int, input_ids: Sequence[int] | IntArray, *, all_logits: bool = False
    ) -> FloatArray:
        """Append to a slot; begins the next reply unless it continues a prompt."""
        slot, ids = self._table.check_prefill(slot, input_ids)
        state, added = self._slots[slot], tuple(ids.tolist())
        goes_on = state.decoded and self._runtime.turn_ids.isdisjoint(added)
        state.guesses_at = len(state.tokens) if state.tokens and all_logits else None
        if not ((state.in_prompt or goes_on or all_logits) and state.tokens):
            state.reply, state.in_prompt = self._runtime.next_reply(), True
            state.decoded = False
        before, state.tokens = len(state.tokens), state.tokens + added
        self._table.advance(slot, len(added))
        self._runtime.calls.append(Prefill(slot, added))
        if not all_logits:
            return self._logits(state, len(state.tokens))
        return np.stack([self._logits(state, before + n + 1) for n in range(len(added))])

    def decode(self, slots: Sequence[int], token_ids: Sequence[int] | IntArray) -> FloatArray:
        """Append one token to each slot; the reply goes on."""
        chosen, ids = self._table.check_decode(slots, token_ids)
        rows = []
        for slot, token_id in zip(chosen, ids.tolist(), strict=True):
            state = self._slots[slot]
            state.reply = state.reply or self._runtime.next_reply()
            state.tokens, state.in_prompt = (*state.tokens, token_id), False
            state.decoded, state.guesses_at = True, None
            self._table.advance(slot, 1)
            rows.append(self._logits(state, len(state.tokens)))
        self._runtime.calls.append(Decode(chosen, tuple(ids.tolist())))
        return np.stack(rows)

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._table.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first tokens; the next prefill begins another reply.

        It does not where what goes are guesses that were just verified.
        """
        self._table.truncate(slot, length)
        state = self._slots[slot]
        state.tokens, state.in_prompt = state.tokens[:length], False
        state.decoded = state.guesses_at is not None and length > state.guesses_at
        state.guesses_at = None
        self._runtime.calls.append(Truncate(slot, length))

    def copy(self, source: int, target: int, length: int) -> None:
        """Share a prefix; decoding the target goes on with the source's reply."""
        self._table.copy(source, target, length)
        state = self._slots[source]
        self._slots[target] = _Slot(state.tokens[:length], state.reply)
        self._runtime.calls.append(Copy(source, target, length))

    def close(self) -> None:
        """Refuse further calls."""
        self._table.close()

    def _logits(self, state: _Slot, length: int) -> FloatArray:
        content, reply = state.tokens[:length], state.reply
        played = next((n for n in range(len(reply) - 1, 0, -1) if content[-n:] == reply[:n]), 0)
        # Noise that depends on every token tells one content from another, as a model does.
        seed = zlib.crc32(np.array(content, np.int32).tobytes())
        logits: FloatArray = np.random.default_rng(seed).random(
            self._runtime.config.padded_vocab_size, np.float32
        )
        logits[reply[played]] = _SCRIPT_LOGIT
        return logits


def _reply_ids(reply: ScriptedReply, tokenizer: Tokenizer) -> list[int]:
    if isinstance(reply, str):
        reply = Message.assistant(reply)
    if isinstance(reply, Message):
        return tokenizer.encode(reply.metadata + "\n") + tokenizer.encode(reply.content)
    ids: list[int] = []
    for part in reply:
        if isinstance(part, SpecialToken):
            ids.append(tokenizer.special_id(part))
        elif isinstance(part, str | Message):
            ids.extend(_reply_ids(part, tokenizer))
        else:
            ids.append(int(part))
    return ids
