from __future__ import annotations

import gc
import weakref
from queue import SimpleQueue

import pytest
from services.echo_runtime import EOS, TOKENIZER, EchoRuntime, close_while_it_decodes

from glm3sdk.domain.chat import FinishReason, Message, Usage
from glm3sdk.errors import (
    NonFiniteLogitsError,
    RuntimeFailureError,
    ServiceClosedError,
)
from glm3sdk.services.decode_loop import GenerationEnd
from glm3sdk.services.encoding import encode_chat
from glm3sdk.services.prefix import CachedSequence, place
from glm3sdk.services.scheduler import Scheduler


class Likeliest:
    def sample(self, logits, generated):
        if logits.max() != logits.max():
            raise NonFiniteLogitsError(f"NaN at step {len(generated)}")
        return int(logits.argmax())


class Caller:
    """Submits a request and reads its events."""

    def __init__(self, scheduler: Scheduler, text: str, *, limit: int = 100) -> None:
        self.events: SimpleQueue = SimpleQueue()
        self.job = scheduler.submit(
            prompt_ids=tuple(encode_chat([Message.user(text)], TOKENIZER)),
            sampler=Likeliest(),
            stop_ids=frozenset({EOS}),
            max_new_tokens=limit,
            deliver=self.events.put,
        )

    def answer(self) -> tuple[str, GenerationEnd]:
        ids = []
        while isinstance(event := self.events.get(timeout=30), int):
            ids.append(event)
        if isinstance(event, Exception):
            raise event
        return TOKENIZER.decode(ids).removeprefix("\n"), event


def scheduler_over(runtime: EchoRuntime, *, slots: int = 2) -> Scheduler:
    return Scheduler(runtime.start_decode(slots=slots, max_seq_length=256))


@pytest.fixture
def runtime():
    return EchoRuntime()


@pytest.fixture
def scheduler(runtime):
    scheduler = scheduler_over(runtime)
    yield scheduler
    runtime.go_on()
    scheduler.close()


def test_a_request_ends_at_its_stop_token(scheduler):
    text, end = Caller(scheduler, "abc").answer()
    assert text == "abc"
    assert end == GenerationEnd(FinishReason.STOP, Usage(8, 5, 0))


def test_length_keeps_the_last_real_token(scheduler):
    text, end = Caller(scheduler, "abc", limit=3).answer()
    assert text == "ab"
    assert end == GenerationEnd(FinishReason.LENGTH, Usage(8, 3, 0))


def test_more_requests_than_slots_are_all_answered_in_shared_batches(runtime, scheduler):
    callers = [Caller(scheduler, f"request {n}") for n in range(7)]
    assert [caller.answer()[0] for caller in callers] == [f"request {n}" for n in range(7)]
    assert {len(slots) for slots in runtime.batches} == {1, 2}


def test_running_requests_decode_between_the_prefills_of_waiting_ones():
    runtime, order = EchoRuntime(), []
    scheduler = scheduler_over(runtime, slots=4)
    session = runtime.sessions[0]
    prefill, decode = session.prefill, session.decode
    session.prefill = lambda *args: (order.append("prefill"), prefill(*args))[1]
    session.decode = lambda *args: (order.append("decode"), decode(*args))[1]
    runtime.hold()
    callers = [Caller(scheduler, "a long enough answer")]
    assert session.decoding.wait(timeout=30)
    callers += [Caller(scheduler, f"{n} comes later") for n in range(3)]
    runtime.go_on()
    for caller in callers:
        caller.answer()
    scheduler.close()
    assert order[:7] == ["prefill", "decode"] * 3 + ["prefill"]


def test_a_cancelled_request_gives_its_slot_to_the_next(runtime):
    scheduler = scheduler_over(runtime, slots=1)
    runtime.hold()
    first = Caller(scheduler, "x" * 60)
    assert runtime.sessions[0].decoding.wait(timeout=30)
    waiting, second = Caller(scheduler, "never read"), Caller(scheduler, "next")
    first.job.cancel()
    waiting.job.cancel()
    runtime.go_on()
    assert second.answer()[0] == "next"
    scheduler.close()
    assert len(runtime.prefills) == 2
    assert len(runtime.batches) < 60


def test_nan_fails_only_its_own_request(scheduler):
    good, bad = Caller(scheduler, "fine"), Caller(scheduler, "nan")
    with pytest.raises(NonFiniteLogitsError, match="step 0"):
        bad.answer()
    assert good.answer()[0] == "fine"
    assert Caller(scheduler, "again").answer()[0] == "again"


def test_a_failing_decode_fails_its_batch_and_leaves_the_scheduler_usable(runtime, scheduler):
    runtime.hold()
    runtime.fail_decode, runtime.fail_batch_size = ValueError("boom"), 2
    callers = [Caller(scheduler, "one"), Caller(scheduler, "two")]
    runtime.go_on()
    failures = []
    for caller in callers:
        with pytest.raises(RuntimeFailureError, match="ValueError: boom") as failure:
            caller.answer()
        assert isinstance(failure.value.__cause__, ValueError)
        failures.append(failure.value)
    assert failures[0] is not failures[1]
    assert Caller(scheduler, "one").answer()[0] == "one"


def test_nothing_is_reused_after_a_failure(runtime):
    scheduler = scheduler_over(runtime, slots=1)
    runtime.fail_decode = RuntimeFailureError("no memory")
    with pytest.raises(RuntimeFailureError, match="no memory"):
        Caller(scheduler, "one").answer()
    assert Caller(scheduler, "one").answer()[1].usage.cached_tokens == 0
    scheduler.close()


def test_a_failing_prefill_fails_its_request(runtime, scheduler):
    runtime.fail_prefill = ValueError("boom")
    with pytest.raises(RuntimeFailureError, match="boom"):
        Caller(scheduler, "one").answer()
    assert Caller(scheduler, "one").answer()[0] == "one"


def test_an_error_with_another_constructor_reaches_its_caller(runtime, scheduler):
    class OddError(RuntimeFailureError):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code}: {text}")

    runtime.fail_prefill = OddError(7, "odd")
    with pytest.raises(OddError, match="7: odd"):
        Caller(scheduler, "one").answer()


def test_close_refuses_running_and_waiting_requests(runtime):
    scheduler = scheduler_over(runtime, slots=1)
    runtime.hold()
    callers = [Caller(scheduler, "running"), Caller(scheduler, "waiting")]
    assert runtime.sessions[0].decoding.wait(timeout=30)
    close_while_it_decodes(runtime, scheduler)
    for caller in callers:
        with pytest.raises(ServiceClosedError):
            caller.answer()
    assert runtime.sessions[0].closed
    with pytest.raises(ServiceClosedError):
        Caller(scheduler, "late")
    scheduler.close()


def test_close_without_any_request_closes_the_session(runtime):
    scheduler = scheduler_over(runtime)
    scheduler.close()
    scheduler.close()
    assert runtime.sessions[0].closed


def test_a_scheduler_that_nobody_holds_ends_its_thread(runtime):
    scheduler = scheduler_over(runtime)
    Caller(scheduler, "one").answer()
    thread, alive = scheduler._thread, weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert alive() is None
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert runtime.sessions[0].closed


def held(slot: int, ids: str, *, prompt: int = 0, used: int = 0, busy: bool = False):
    return CachedSequence(slot, [ord(each) for each in ids], prompt, used, busy)


def placed(prompt: str, *sequences: CachedSequence) -> tuple[int, int | None, int]:
    found = place([ord(each) for each in prompt], sequences)
    return found.target.slot, found.source.slot if found.source else None, found.keep


LONG = "abcdefghijklmnopqrstuvwxyz"


def test_a_conversation_stays_in_its_slot():
    slots = [held(0, ""), held(1, "abcd", prompt=3, used=9), held(2, "ab", prompt=2, used=1)]
    assert placed("abcdef", *slots) == (1, None, 4)


def test_the_last_token_is_always_read():
    assert placed("abcd", held(0, "abcd", prompt=4)) == (0, None, 3)


def test_another_conversation_does_not_overwrite_a_longer_one_for_a_few_tokens():
    assert placed("abX", held(0, "abcdefgh", prompt=6, used=1), held(1, "")) == (1, None, 0)


def test_the_slot_that_was_idle_longest_is_taken():
    slots = [held(0, "xy", prompt=2, used=5), held(1, "zz", prompt=2, used=3)]
    assert placed("abc", *slots) == (1, None, 0)


@pytest.mark.parametrize("busy", [False, True])
def test_a_long_shared_prefix_is_copied(busy):
    slots = [held(0, LONG, prompt=26, used=5, busy=busy), held(1, "zz", prompt=2, used=3)]
    assert placed(LONG[:20] + "!!", *slots) == (1, 0, 20)


def test_a_short_shared_prefix_is_read_again():
    slots = [held(0, LONG, prompt=26, used=5, busy=True), held(1, "")]
    assert placed(LONG[:15] + "!!", *slots) == (1, None, 0)


def test_a_single_slot_keeps_what_two_conversations_share():
    assert placed("abX", held(0, "abcdefgh", prompt=6)) == (0, None, 2)
