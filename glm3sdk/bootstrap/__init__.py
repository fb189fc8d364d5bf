"""The only package that chooses adapters: names, paths and configurations become parts."""

from __future__ import annotations

from glm3sdk.bootstrap.finetune import Finetune, load_finetune
from glm3sdk.bootstrap.pulling import PulledModel, pull
from glm3sdk.bootstrap.serving import load_runtime, load_service, load_tokenizer

__all__ = [
    "Finetune",
    "PulledModel",
    "load_finetune",
    "load_runtime",
    "load_service",
    "load_tokenizer",
    "pull",
]
