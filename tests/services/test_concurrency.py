from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from services.echo_runtime import TOKENIZER, EchoRuntime

from glm3sdk.domain.chat import Message
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.errors import NonFiniteLogitsError, ServiceClosedError
from glm3sdk.services.chat import Glm3Service

GREEDY = GenerationConfig(do_sample=False)
THREADS = 16


def at_once(work, count: int = THREADS) -> list:
    """Run `work(n)` in threads that all start together."""
    barrier = threading.Barrier(count)

    def wait_and_work(n: int):
        barrier.wait(timeout=30)
        return work(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_work, range(count)))


def conversation(service: Glm3Service, n: int) -> list[str]:
    history, answers = [], []
    for turn in range(3):
        reply = service.chat([*history, Message.user(f"thread {n} turn {turn}")], GREEDY)
        history = reply.history
        answers.append(reply.content)
    return answers


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_every_thread_is_answered_as_if_alone(slots):
    with Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER, slots=slots) as service:
        answers = at_once(lambda n: conversation(service, n))
    assert answers == [[f"thread {n} turn {turn}" for turn in range(3)] for n in range(THREADS)]


def test_chats_streams_batches_failures_and_left_streams_mix():
    def work(n: int) -> bool:
        message = [Message.user(f"text of thread {n}")]
        expected = message[0].content
        if n % 4 == 0:
            streamed = "".join(event.content for event in service.stream_chat(message, GREEDY))
            return streamed == expected
        if n % 4 == 1:
            with pytest.raises(NonFiniteLogitsError):
                service.chat([Message.user("nan")])
            return service.chat(message, GREEDY).content == expected
        if n % 4 == 2:
            next(service.stream_chat(message, GREEDY))
            stopped = service.chat(message, GenerationConfig(do_sample=False, stop=" of"))
            return stopped.content == "text"
        replies = service.chat_batch([message] * 5, GREEDY)
        return [reply.content for reply in replies] == [expected] * 5

    with Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER, slots=3) as service:
        assert at_once(work) == [True] * THREADS


def test_two_services_are_used_at_once():
    with (
        Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER, slots=2) as one,
        Glm3Service(runtime=EchoRuntime({"who": "two"}), tokenizer=TOKENIZER, slots=2) as two,
    ):
        answers = at_once(lambda n: (one, two)[n % 2].chat([Message.user("who")], GREEDY).content)
    assert answers == ["who", "two"] * (THREADS // 2)


def test_threads_that_close_at_once_end_every_caller():
    service = Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER, slots=2)

    def work(n: int) -> str:
        if n % 4 == 0:
            service.close()
            return "closed"
        try:
            return service.chat([Message.user(f"thread {n}")], GREEDY).content
        except ServiceClosedError:
            return "refused"

    for n, outcome in enumerate(at_once(work)):
        assert outcome in ("closed", "refused", f"thread {n}")
    with pytest.raises(ServiceClosedError):
        service.chat([Message.user("late")])


def test_an_open_service_does_not_hold_up_the_end_of_a_program():
    program = (
        "from glm3sdk.domain.chat import Message\n"
        "from glm3sdk.services.chat import Glm3Service\n"
        "from glm3sdk.testing.fake_tokenizer import CharacterTokenizer\n"
        "from glm3sdk.testing.scripted_runtime import ScriptedRuntime\n"
        "service = Glm3Service(runtime=ScriptedRuntime('hi'), tokenizer=CharacterTokenizer())\n"
        "stream = service.stream_chat([Message.user('hello')])\n"
        "print(next(stream).content)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "h\n", "")
