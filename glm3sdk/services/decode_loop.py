"""The loop of one worker thread: continuous batching over the slots of a decode session."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from queue import Empty, SimpleQueue
from typing import Protocol, TypeAlias

import attrs

from glm3sdk.domain.chat import FinishReason, Usage
from glm3sdk.errors import Glm3Error, RuntimeFailureError, ServiceClosedError
from glm3sdk.ports.arrays import FloatArray
from glm3sdk.ports.model_runtime import DecodeSession
from glm3sdk.services.prefix import CachedSequence, common_prefix, place
from glm3sdk.services.prompt_lookup import PromptLookup
from glm3sdk.services.structure import TokenConstraint

_log = logging.getLogger(__name__)


class TokenChooser(Protocol):
    """Chooses the next token of one request; a `Sampler` is one."""

    def sample(self, logits: FloatArray, generated: Sequence[int]) -> int:
        """Choose from logits `[V]`, knowing what was generated so far."""


@attrs.frozen
class GenerationEnd:
    """A request's last event: why it ended, and its token counts."""

    finish_reason: FinishReason
    usage: Usage


TokenEvent: TypeAlias = int | GenerationEnd | Exception


@attrs.define(eq=False)
class Job:
    """A request in the loop.

    Attributes:
        prompt_ids: the prompt.
        sampler: chooses each token.
        stop_ids: ids that end the reply; they are not delivered.
        max_new_tokens: most tokens to generate; the slot has room for them.
        deliver: takes each token, then the end or what went wrong. It must not block.
        constraint: what the reply is held to, or None.
        guesses: the most tokens to guess and verify in one step; 0 guesses none.
        cancelled: nobody waits for it any more.
        cached_tokens: tokens of the prompt whose kv_cache was reused, known before the
            first token is delivered.
        generated: tokens so far, the stop token included; the loop's own.
        pending: the last of them, which the slot does not hold yet: the token that was
            chosen and those that it forces.
    """

    prompt_ids: tuple[int, ...]
    sampler: TokenChooser
    stop_ids: frozenset[int]
    max_new_tokens: int
    deliver: Callable[[TokenEvent], None]
    constraint: TokenConstraint | None = None
    guesses: int = 0
    cancelled: bool = False
    cached_tokens: int = 0
    generated: list[int] = attrs.field(factory=list)
    pending: list[int] = attrs.field(factory=list)
    _lookup: PromptLookup | None = attrs.field(default=None, init=False)

    def cancel(self) -> None:
        """Give its slot free at the next step."""
        self.cancelled = True

    def usage(self, completion_tokens: int) -> Usage:
        """Token counts when this many tokens were generated."""
        return Usage(len(self.prompt_ids), completion_tokens, self.cached_tokens)

    def guess(self) -> list[int]:
        """The tokens that may follow the pending one, as many as there is room to choose."""
        if not self.guesses:
            return []
        if self._lookup is None:
            self._lookup = PromptLookup(self.guesses, self.prompt_ids)
        self._lookup.extend(self.generated[self._lookup.length - len(self.prompt_ids) :])
        # The last token that there is room for is chosen and never read.
        guess = self._lookup.guess()[: self.max_new_tokens - len(self.generated) - 1]
        return list(takewhile(lambda token_id: token_id not in self.stop_ids, guess))

    def learn(self, guessed: int, right: int) -> None:
        """Take how many of the guessed tokens were chosen."""
        if self._lookup is not None:
            self._lookup.learn(guessed, right)


class DecodeLoop:
    """Serves jobs until it takes None from its inbox.

    Every attribute but the inbox belongs to the thread that runs `run`; other threads may
    ask for the counts. Each step reads
    waiting prompts into free slots, then decodes all running jobs in one batch, but for
    those with forced tokens: these are read at once, as a prompt is. A job that runs alone
    has guessed tokens read with its last one.
    """

    def __init__(self, session: DecodeSession) -> None:
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._session = session
        self._sequences = [CachedSequence(slot) for slot in range(session.slots)]
        self._waiting: deque[Job] = deque()
        self._active: dict[Job, CachedSequence] = {}
        self._uses = 0

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self._sequences)

    @property
    def busy(self) -> int:
        """Number of requests that run."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._waiting) + self.inbox.qsize()

    def run(self) -> None:
        """Serve; at the end refuse what is unfinished and close the session."""
        while self._take_in():
            try:
                self._step()
            except Exception as exc:
                # One failed batch: its callers learn of it and the loop goes on.
                for job in list(self._active):
                    self._fail(job, exc)
        for job in (*self._active, *self._waiting):
            job.deliver(ServiceClosedError("the service was closed before the reply was complete"))
        self._session.close()

    def _take_in(self) -> bool:
        while True:
            idle = not (self._waiting or self._active)
            try:
                job = self.inbox.get(block=idle)
            except Empty:
                return True
            if job is None:
                return False
            self._waiting.append(job)

    def _step(self) -> None:
        for job in [job for job in self._active if job.cancelled]:
            self._release(job)
        if any(job.cancelled for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        # A queue of prompts must not stop the replies that are being written.
        admissions = 1 if self._active else len(self._sequences)
        while self._waiting and admissions and len(self._active) < len(self._sequences):
            self._prefill(self._waiting.popleft())
            admissions -= 1
        for job in [job for job in self._active if len(job.pending) > 1]:
            self._append(job)
        # Guesses take more of a step than the sequences of a batch, which are all wanted.
        alone = next(iter(self._active)) if len(self._active) == 1 else None
        if alone and len(alone.pending) == 1 and (guess := alone.guess()):
            self._append(alone, guess)
        elif self._active:
            self._decode()

    def _prefill(self, job: Job) -> None:
        placement = place(job.prompt_ids, self._sequences)
        sequence, source, keep = placement.target, placement.source, placement.keep
        self._active[job], sequence.busy = sequence, True
        try:
            if source is None:
                self._session.truncate(sequence.slot, keep)
            else:
                self._session.copy(source.slot, sequence.slot, keep)
            if job.constraint is not None:
                job.generated = job.constraint.forced(most=job.max_new_tokens)
            read = [*job.prompt_ids, *job.generated]
            logits = self._session.prefill(sequence.slot, read[keep:])
        except Exception as exc:
            self._fail(job, exc)
            return
        sequence.token_ids = read
        sequence.prompt_length = len(job.prompt_ids)
        job.cached_tokens = keep
        for token_id in job.generated:
            job.deliver(token_id)
        if not self._over(job):
            self._choose(job, logits)

    def _append(self, job: Job, guess: Sequence[int] = ()) -> None:
        """Read a job's pending tokens at once, and guessed ones behind them."""
        sequence = self._active[job]
        read = [*job.pending, *guess]
        try:
            logits = self._session.prefill(sequence.slot, read, all_logits=bool(guess))
        except Exception as exc:
            self._fail(job, exc)
            return
        sequence.token_ids += job.pending
        if guess:
            self._verify(job, guess, logits[len(job.pending) - 1 :])
        else:
            self._choose(job, logits)

    def _verify(self, job: Job, guess: Sequence[int], logits: FloatArray) -> None:
        """Choose tokens as long as they are the guessed ones, and one more."""
        sequence, right = self._active[job], 0
        while True:
            self._choose(job, logits[right])
            if job not in self._active:
                break
            held = common_prefix(job.pending, guess[right:])
            sequence.token_ids += job.pending[:held]
            job.pending = job.pending[held:]
            right += held
            if job.pending:
                break
        job.learn(len(guess), right)
        self._session.truncate(sequence.slot, len(sequence.token_ids))

    def _decode(self) -> None:
        batch = [each for each in self._active.items() if len(each[0].pending) == 1]
        if not batch:
            return
        logits = self._session.decode(
            [sequence.slot for _, sequence in batch], [job.pending[0] for job, _ in batch]
        )
        for (job, sequence), row in zip(batch, logits, strict=True):
            sequence.token_ids += job.pending
            self._choose(job, row)

    def _choose(self, job: Job, logits: FloatArray) -> None:
        try:
            token_id = job.sampler.sample(logits, job.generated)
            job.generated.append(token_id)
            if token_id in job.stop_ids:
                self._end(job, FinishReason.STOP)
                return
            job.pending = [token_id]
            if job.constraint is not None:
                room = job.max_new_tokens - len(job.generated)
                job.constraint.accept(token_id)
                job.pending += job.constraint.forced(most=room)
                job.generated += job.pending[1:]
        except Exception as exc:
            self._fail(job, exc)
            return
        for token_id in job.pending:
            job.deliver(token_id)
        self._over(job)

    def _over(self, job: Job) -> bool:
        """End a job that is to write no more."""
        if job.constraint is not None and job.constraint.finished:
            self._end(job, FinishReason.STOP)
            return True
        if len(job.generated) >= job.max_new_tokens:
            self._end(job, FinishReason.LENGTH)
            return True
        return False

    def _end(self, job: Job, reason: FinishReason) -> None:
        self._release(job)
        job.deliver(GenerationEnd(reason, job.usage(len(job.generated))))

    def _fail(self, job: Job, exc: Exception) -> None:
        # What the slot holds after a failure is not to be trusted, nor to be reused.
        self._release(job).forget()
        _log.debug("a request failed: %s", type(exc).__name__)
        job.deliver(_as_failure(exc))

    def _release(self, job: Job) -> CachedSequence:
        sequence = self._active.pop(job)
        self._uses += 1
        sequence.busy, sequence.last_used = False, self._uses
        return sequence


def _as_failure(exc: Exception) -> Glm3Error:
    """An error of its own for each caller: several threads may raise it at once."""
    failure: Glm3Error
    if isinstance(exc, Glm3Error):
        # __new__ takes what __init__ may not: a failure here would leave callers waiting.
        failure = type(exc).__new__(type(exc), *exc.args)
    else:
        failure = RuntimeFailureError(f"the model failed: {type(exc).__name__}: {exc}")
    failure.__cause__ = exc
    return failure
