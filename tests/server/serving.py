"""A server on loopback and its clients."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import openai

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.chat import Message
from glm3sdk.server import Listener, create_app
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import ScriptedReply, ScriptedRuntime

TOKENIZER = CharacterTokenizer()
HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(name: str, arguments: str) -> Message:
    return Message.assistant(f"```python\ntool_call({arguments})\n```", metadata=name)


def scripted(*replies: ScriptedReply, slots: int = 2) -> Glm3Service:
    return Glm3Service(
        runtime=ScriptedRuntime(*replies),
        tokenizer=TOKENIZER,
        slots=slots,
        constraints=LlguidanceConstraints(TOKENIZER),
    )


@attrs.frozen
class Served:
    """A running server.

    Attributes:
        url: its address.
        client: OpenAI's client, as an application has it.
    """

    url: str
    client: openai.OpenAI

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if body is not None else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def metric(self, name: str) -> float:
        """A figure of /metrics, 0 where it was not counted yet."""
        found = re.search(
            rf"^{re.escape(name)} (.+)$", self.ask("GET", "/metrics")[2].decode(), re.M
        )
        return float(found[1]) if found else 0.0


@contextmanager
def served(service: Glm3Service, **options: Any) -> Iterator[Served]:
    options.setdefault("model_name", "glm3")
    app = create_app(service, **options)
    with service, Listener(app, port=0) as listener:
        key = options.get("api_key") or "unused"
        with openai.OpenAI(base_url=f"{listener.url}/v1", api_key=key, max_retries=0) as client:
            yield Served(listener.url, client)


def until(happened: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        pause.wait(0.002)
