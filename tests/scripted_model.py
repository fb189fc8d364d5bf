"""The bundled model's files with a script in the place of its weights."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from glm3sdk import load_tokenizer
from glm3sdk.bootstrap import evaluation, prediction
from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.testing.scripted_runtime import ScriptedReply, ScriptedRuntime
from glm3sdk.testing.scripted_training import ScriptedTraining


class TrainableRuntime(ScriptedRuntime):
    """A scripted runtime whose loss is that of a bigram table."""

    sessions = 0

    @property
    def capabilities(self) -> RuntimeCapabilities:
        return attrs.evolve(super().capabilities, training=True)

    def start_training(self, *, plan: Any) -> ScriptedTraining:
        self.sessions += 1
        return ScriptedTraining(self.config.padded_vocab_size, optimizer=plan.optimizer)


@attrs.define
class Loaded:
    """Every load: the runtime, and what it was asked for."""

    runtimes: list[ScriptedRuntime] = attrs.field(factory=list)
    options: list[dict[str, Any]] = attrs.field(factory=list)


def play(
    monkeypatch: pytest.MonkeyPatch,
    *replies: ScriptedReply,
    kind: type[ScriptedRuntime] = ScriptedRuntime,
) -> Loaded:
    """Let every runtime that a configuration starts play these replies."""
    loaded, tokenizer = Loaded(), load_tokenizer("tiny")

    def start_runtime(opened: object, **options: Any) -> ScriptedRuntime:
        loaded.options.append(options)
        loaded.runtimes.append(kind(*replies, tokenizer=tokenizer))
        return loaded.runtimes[-1]

    monkeypatch.setattr(prediction, "start_runtime", start_runtime)
    monkeypatch.setattr(evaluation, "jieba_words", lambda: list)
    return loaded
