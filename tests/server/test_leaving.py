"""Clients that go away, a full queue, and servers that stop."""

from __future__ import annotations

import json
import socket
from threading import Thread

import pytest
from server.serving import CHAT, HI, TOKENIZER, Served, served, until
from services.echo_runtime import EchoRuntime

from glm3sdk.server import Listener, create_app
from glm3sdk.services.chat import Glm3Service

LEFT = 'glm3_requests_total{endpoint="chat.completions",status="499"}'


def send(server: Served, **options) -> socket.socket:
    """Ask for a reply and read nothing of it."""
    body = json.dumps({"messages": HI, **options}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_its_slot_and_its_place_in_the_queue_free(stream: bool):
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1)
    with served(service) as server:
        runtime.hold()
        running = send(server, stream=stream)
        until(lambda: server.metric("glm3_slots_busy") == 1)
        waiting = send(server, stream=stream)
        until(lambda: server.metric("glm3_queue") == 1)
        running.close()
        waiting.close()
        until(lambda: server.metric(LEFT) == 2)
        runtime.go_on()
        until(lambda: service.load.busy == service.load.waiting == 0)
        # Its reply would have been "\nhi": the step that was held is the only one.
        assert runtime.batches == [(0,)]
        assert json.loads(server.ask("POST", CHAT, {"messages": HI})[2])["usage"]


def test_one_that_leaves_in_the_middle_of_a_stream_disturbs_no_other():
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=2)
    with served(service) as server:
        runtime.hold(after=3)
        leaver = send(server, stream=True, messages=[{"role": "user", "content": "x" * 100}])
        assert b"content" in leaver.recv(2000)
        answers: list[str | None] = []

        def stay() -> None:
            created = server.client.chat.completions.create(
                model="glm3", messages=[{"role": "user", "content": "I stay " * 9}], temperature=0
            )
            answers.append(created.choices[0].message.content)

        stayer = Thread(target=stay)
        stayer.start()
        until(lambda: server.metric("glm3_slots_busy") + server.metric("glm3_queue") == 2)
        leaver.close()
        until(lambda: server.metric(LEFT) == 1)
        runtime.go_on()
        stayer.join(timeout=30)
    assert answers == [("I stay " * 9).strip()]
    # The leaver wrote nothing more once it was alone in knowing so.
    assert sum(len(batch) == 2 for batch in runtime.batches) <= 1


def test_one_that_leaves_while_it_still_sends_costs_nothing():
    with served(Glm3Service(runtime=EchoRuntime(), tokenizer=TOKENIZER)) as server:
        connection = socket.create_connection(server.address, timeout=30)
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        connection.close()
        until(lambda: server.metric(LEFT) == 1)
        assert server.metric("glm3_slots_busy") == 0


def test_a_full_queue_is_429_with_the_time_to_come_back():
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1)
    with served(service, max_queue=1) as server:
        runtime.hold()
        held = [send(server) for _ in range(2)]
        until(lambda: server.metric("glm3_slots_busy") + server.metric("glm3_queue") == 2)
        status, headers, body = server.ask("POST", CHAT, {"messages": HI})
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert json.loads(body)["error"]["code"] == "queue_full"
        runtime.go_on()
        for connection in held:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()
        until(lambda: server.ask("POST", CHAT, {"messages": HI})[0] == 200)


def test_a_reply_that_takes_too_long_is_cut_off_and_frees_its_slot():
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1)
    with served(service, request_timeout_s=0.5) as server:
        runtime.hold()
        status, _, body = server.ask("POST", CHAT, {"messages": HI})
        assert (status, json.loads(body)["error"]["code"]) == (504, "timeout")
        status, _, body = server.ask("POST", CHAT, {"messages": HI, "stream": True})
        assert status == 200
        *_, error, done, end = body.decode().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"
        assert (done, end) == ("data: [DONE]", "")
        runtime.go_on()
        until(lambda: service.load.busy == service.load.waiting == 0)


def test_a_stopping_server_finishes_what_runs_and_takes_nothing_new():
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1)
    app = create_app(service, model_name="glm3")
    with service:
        listener = Listener(app, port=0)
        listener.start()
        server = Served(listener.url, None)
        runtime.hold()
        running = send(server)
        idle = socket.create_connection(server.address, timeout=30)
        until(lambda: service.load.busy == 1)
        listener.stop()
        assert idle.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):
            send(server)
        runtime.go_on()
        answer = b""
        while chunk := running.recv(4096):
            answer += chunk
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["finish_reason"] == "stop"
        listener.wait()
        running.close()
        idle.close()


def test_a_request_that_does_not_end_in_time_is_cut_off_by_the_stop():
    runtime = EchoRuntime()
    service = Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1)
    app = create_app(service, model_name="glm3")
    with service:
        with Listener(app, port=0, grace_s=0) as listener:
            runtime.hold()
            running = send(Served(listener.url, None))
            until(lambda: service.load.busy == 1)
        runtime.go_on()
        until(lambda: service.load.busy == 0)
        running.close()
