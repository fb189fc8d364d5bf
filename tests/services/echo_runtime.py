"""A fake model whose answer depends on the conversation, and faults on demand."""

from __future__ import annotations

import threading

import attrs
import numpy as np

from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.ports.slots import SlotTable
from glm3sdk.services.scheduler import Scheduler
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer

EOS = 2
TOKENIZER = CharacterTokenizer()
ASSISTANT = TOKENIZER.special_id(SpecialToken.ASSISTANT)


class EchoRuntime:
    """Answers the last message with its own text; `answer` maps some texts to others.

    Attributes:
        prefills: `(slot, ids)` of every prefill.
        batches: the slots of every decode.
        copies: `(source, target, length)` of every copy.
        fail_prefill, fail_decode: raised once by the next such call.
        fail_batch_size: a smaller decode does not fail.
        nan_after: a message whose answer begins with NaN logits.
    """

    def __init__(self, answer: dict[str, str | list[int]] | None = None) -> None:
        self.config = attrs.evolve(
            Glm3Config.preset("tiny"), padded_vocab_size=TOKENIZER.vocab_size, seq_length=512
        )
        self.capabilities = RuntimeCapabilities(name="echo", dtype="float32")
        self.answer = answer or {}
        self.prefills: list[tuple[int, tuple[int, ...]]] = []
        self.batches: list[tuple[int, ...]] = []
        self.copies: list[tuple[int, int, int]] = []
        self.fail_prefill: Exception | None = None
        self.fail_decode: Exception | None = None
        self.nan_after = "nan"
        self.fail_batch_size = 1
        self._permits: threading.Semaphore | None = None
        self.closed = False
        self.sessions: list[EchoSession] = []

    def hold(self, *, after: int = 0) -> None:
        """Let this many decodes pass; the next one waits for `go_on`."""
        self._permits = threading.Semaphore(after)

    def go_on(self) -> None:
        held, self._permits = self._permits, None
        if held:
            held.release()

    def wait(self) -> None:
        if held := self._permits:
            assert held.acquire(timeout=30)

    def start_decode(self, *, slots: int, max_seq_length: int) -> EchoSession:
        table = SlotTable(self.config, slots=slots, max_seq_length=max_seq_length)
        self.sessions.append(EchoSession(self, table))
        return self.sessions[-1]

    def close(self) -> None:
        self.closed = True


class EchoSession:
    def __init__(self, runtime: EchoRuntime, table: SlotTable) -> None:
        self.runtime = runtime
        self.table = table
        self.slots = table.slots
        self.max_seq_length = table.max_seq_length
        self.held: list[list[int]] = [[] for _ in range(table.slots)]
        self.closed = False
        self.decoding = threading.Event()

    def prefill(self, slot, input_ids, *, all_logits=False):
        assert not all_logits
        slot, ids = self.table.check_prefill(slot, input_ids)
        failure, self.runtime.fail_prefill = self.runtime.fail_prefill, None
        if failure:
            raise failure
        self.held[slot].extend(ids.tolist())
        self.table.advance(slot, len(ids))
        self.runtime.prefills.append((slot, tuple(ids.tolist())))
        return self._logits(self.held[slot])

    def decode(self, slots, token_ids):
        self.decoding.set()
        self.runtime.wait()
        chosen, ids = self.table.check_decode(slots, token_ids)
        if self.runtime.fail_decode and len(chosen) >= self.runtime.fail_batch_size:
            failure, self.runtime.fail_decode = self.runtime.fail_decode, None
            raise failure
        self.runtime.batches.append(tuple(chosen))
        rows = []
        for slot, token_id in zip(chosen, ids.tolist(), strict=True):
            self.held[slot].append(token_id)
            self.table.advance(slot, 1)
            rows.append(self._logits(self.held[slot]))
        return np.stack(rows)

    def length(self, slot):
        return self.table.length(slot)

    def truncate(self, slot, length):
        self.table.truncate(slot, length)
        del self.held[slot][length:]

    def copy(self, source, target, length):
        self.table.copy(source, target, length)
        self.held[target] = self.held[source][:length]
        self.runtime.copies.append((source, target, length))

    def close(self):
        self.closed = True
        self.table.close()

    def _logits(self, ids: list[int]) -> np.ndarray:
        logits = np.zeros(self.runtime.config.padded_vocab_size, np.float32)
        last = max((n for n, each in enumerate(ids) if each == ASSISTANT), default=len(ids) - 1)
        message = TOKENIZER.decode(ids[:last]).rpartition("\n")[2]
        if message == self.runtime.nan_after:
            return np.full_like(logits, np.nan)
        answer = self.runtime.answer.get(message, message)
        if isinstance(answer, str):
            answer = TOKENIZER.encode("\n" + answer)
        written = len(ids) - last - 1
        logits[answer[written] if written < len(answer) else EOS] = 50.0
        return logits


def close_while_it_decodes(runtime: EchoRuntime, scheduler: Scheduler) -> None:
    """Close a scheduler whose worker waits in a held decode, or is about to."""
    inbox = scheduler._loop.inbox
    before = inbox.qsize()
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    while closer.is_alive() and inbox.qsize() == before:
        closer.join(timeout=0.001)
    runtime.go_on()
    closer.join(timeout=30)
    assert not closer.is_alive()
