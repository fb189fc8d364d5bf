"""`glm3` over a model that plays replies."""

from __future__ import annotations

from typing import Any

from glm3sdk.cli.loading import Loaders
from glm3sdk.domain.chat import Message
from glm3sdk.services.chat import Glm3Service
from glm3sdk.testing.fake_tokenizer import CharacterTokenizer
from glm3sdk.testing.scripted_runtime import ScriptedReply, ScriptedRuntime

TOKENIZER = CharacterTokenizer()


def call(name: str, arguments: str) -> Message:
    return Message.assistant(f"```python\ntool_call({arguments})\n```", metadata=name)


def scripted_loaders(*replies: ScriptedReply, loaded: list[Any] | None = None) -> Loaders:
    """Loaders of a scripted model; `loaded` collects the model and options of each load."""

    def load_service(model: str, **options: Any) -> Glm3Service:
        if loaded is not None:
            loaded.append({"model": model, **options})
        options.pop("runtime", None)
        runtime = ScriptedRuntime(*replies)
        return Glm3Service(runtime=runtime, tokenizer=TOKENIZER, owns_runtime=True, **options)

    return Loaders(service=load_service, tokenizer=lambda path: TOKENIZER)
