from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from services.echo_runtime import TOKENIZER, EchoRuntime

from glm3sdk.domain.chat import Message, ReplyEnd
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.errors import InvalidMessageError, NonFiniteLogitsError, ServiceClosedError
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.scheduler import Load

GREEDY = GenerationConfig(do_sample=False)


def echo(runtime: EchoRuntime, *, slots: int = 2) -> Glm3Service:
    return Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=slots)


def said(text: str) -> list[Message]:
    return [Message.user(text)]


async def until(happened) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0)


def test_a_chat_and_a_batch_are_answered_as_without_asyncio():
    async def work(service: Glm3Service):
        one = await service.achat(said("hello"), GREEDY)
        return one, await service.achat_batch([said("a"), said("bb"), said("ccc")], GREEDY)

    with echo(EchoRuntime()) as service:
        one, batch = asyncio.run(work(service))
        assert one.content == service.chat(said("hello"), GREEDY).content == "hello"
        assert [message.content for message in one.history] == ["hello", "hello"]
    assert [reply.content for reply in batch] == ["a", "bb", "ccc"]


def test_a_stream_ends_with_the_whole_reply():
    async def work(service: Glm3Service):
        return [event async for event in service.astream_chat(said("hello"), GREEDY)]

    with echo(EchoRuntime()) as service:
        events = asyncio.run(work(service))
    assert "".join(event.content for event in events) == "hello"
    assert isinstance(events[-1], ReplyEnd)
    assert events[-1].reply.content == "hello"


def test_an_empty_batch_has_no_replies():
    with echo(EchoRuntime()) as service:
        assert asyncio.run(service.achat_batch([])) == []


def test_many_at_once_are_each_answered_as_if_alone():
    async def work(service: Glm3Service):
        return await asyncio.gather(
            *(service.achat(said(f"task {n} {'x' * n}"), GREEDY) for n in range(60))
        )

    runtime = EchoRuntime()
    with echo(runtime, slots=4) as service:
        replies = asyncio.run(work(service))
        assert service.load == Load(slots=4, busy=0, waiting=0)
    assert [reply.content for reply in replies] == [
        f"task {n} {'x' * n}".strip() for n in range(60)
    ]
    assert max(map(len, runtime.batches)) == 4


def test_the_event_loop_goes_on_while_the_model_works():
    async def work(service: Glm3Service, runtime: EchoRuntime) -> str:
        runtime.hold()
        asked = asyncio.create_task(service.achat(said("slow"), GREEDY))
        # The model stands still in a step until this very loop lets it go on.
        await until(runtime.sessions[0].decoding.is_set)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not asked.done()
        runtime.go_on()
        return (await asked).content

    runtime = EchoRuntime()
    with echo(runtime) as service:
        assert asyncio.run(work(service, runtime)) == "slow"


def test_a_long_reply_that_is_all_there_lets_others_have_their_turn():
    async def work(service: Glm3Service) -> list[str]:
        order: list[str] = []

        async def read() -> None:
            events = service.astream_chat(said("x" * 200), GREEDY)
            while not isinstance(await anext(events), ReplyEnd):
                order.append("token")

        async def tick() -> None:
            while "token" not in order:
                await asyncio.sleep(0)
            for _ in range(20):
                order.append("tick")
                await asyncio.sleep(0)

        await asyncio.gather(read(), tick())
        return order

    with echo(EchoRuntime()) as service:
        order = asyncio.run(work(service))
    last_tick = max(n for n, each in enumerate(order) if each == "tick")
    assert last_tick < len(order) - 50


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_gives_the_slot_free_and_disturbs_no_other(stream: bool):
    async def work(service: Glm3Service, runtime: EchoRuntime) -> str:
        runtime.hold(after=2)

        async def read() -> None:
            async for _ in service.astream_chat(said("left " * 30), GREEDY):
                pass

        leaving = asyncio.create_task(
            read() if stream else service.achat(said("left " * 30), GREEDY)
        )
        await until(lambda: service.load.busy == 1)
        waiting = asyncio.create_task(service.achat(said("never begun"), GREEDY))
        staying = asyncio.create_task(service.achat(said("stays"), GREEDY))
        await until(lambda: service.load.waiting == 2)
        leaving.cancel()
        waiting.cancel()
        for task in (leaving, waiting):
            with pytest.raises(asyncio.CancelledError):
                await task
        runtime.go_on()
        answer = (await staying).content
        await until(lambda: service.load == Load(slots=1, busy=0, waiting=0))
        return answer

    runtime = EchoRuntime()
    with echo(runtime, slots=1) as service:
        assert asyncio.run(work(service, runtime)) == "stays"
    texts = [TOKENIZER.decode(ids) for _, ids in runtime.prefills]
    assert not any("never" in text for text in texts)
    # Of the reply that was left, two steps ran and the third was under way.
    assert len(runtime.batches) <= 3 + len("\nstays")


def test_closing_a_stream_gives_the_slot_free():
    async def work(service: Glm3Service) -> None:
        async with aclosing(service.astream_chat(said("left " * 50), GREEDY)) as events:
            async for event in events:
                assert event.content == "l"
                break
        await until(lambda: service.load.busy == 0)

    with echo(EchoRuntime(), slots=1) as service:
        asyncio.run(work(service))


def test_bad_input_failures_and_a_closed_service_raise_as_without_asyncio():
    async def work(service: Glm3Service) -> None:
        with pytest.raises(InvalidMessageError):
            await service.achat([])
        with pytest.raises(InvalidMessageError):
            await anext(service.astream_chat([]))
        with pytest.raises(NonFiniteLogitsError):
            await service.achat(said("nan"))
        with pytest.raises(NonFiniteLogitsError):
            await service.achat_batch([said("fine"), said("nan")])
        await until(lambda: service.load.busy == 0)
        service.close()
        with pytest.raises(ServiceClosedError):
            await service.achat(said("late"))

    asyncio.run(work(echo(EchoRuntime())))


def test_a_loop_that_was_closed_does_not_harm_the_worker():
    runtime = EchoRuntime()
    with echo(runtime, slots=1) as service:
        runtime.hold()
        loop = asyncio.new_event_loop()
        events = service.astream_chat(said("left"), GREEDY)
        step = loop.create_task(anext(events))
        loop.run_until_complete(asyncio.wait_for(_busy(service), 30))
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(step)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        runtime.go_on()
        assert service.chat(said("on"), GREEDY).content == "on"


async def _busy(service: Glm3Service) -> None:
    while not service.load.busy:
        await asyncio.sleep(0)
