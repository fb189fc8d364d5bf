"""ChatGLM3-6B as a Python SDK: chat, tools, finetune, on MindSpore, Ascend or a plain CPU.

from glm3sdk import Message, load_service

with load_service("tiny") as service:
    print(service.chat([Message.user("你好")]).content)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glm3sdk._version import __version__

if TYPE_CHECKING:
    from glm3sdk.bootstrap import (
        Finetune,
        PulledModel,
        load_finetune,
        load_runtime,
        load_service,
        load_tokenizer,
        pull,
    )
    from glm3sdk.bootstrap.conversion import convert
    from glm3sdk.bootstrap.resharding import merge_checkpoint, split_checkpoint
    from glm3sdk.bootstrap.tools import load_tools
    from glm3sdk.domain.chat import (
        CodeCell,
        Completion,
        CompletionEnd,
        Delta,
        FinishReason,
        IncompleteStructure,
        MalformedToolCall,
        Message,
        Reply,
        ReplyEnd,
        Role,
        Text,
        TextDelta,
        ToolCall,
        ToolCallDelta,
        ToolCallEnd,
        ToolCallStart,
        ToolSpec,
        Usage,
    )
    from glm3sdk.domain.constraints import Choice, Grammar, JsonSchema, Regex, response_format
    from glm3sdk.domain.generation import GenerationConfig
    from glm3sdk.domain.model import Glm3Config
    from glm3sdk.domain.replies import parse_reply
    from glm3sdk.domain.tool_functions import Tool, tool
    from glm3sdk.services.chat import Glm3Service
    from glm3sdk.services.conversion import ConversionReport
    from glm3sdk.services.encoding import encode_chat
    from glm3sdk.services.finetune import (
        CheckpointSaved,
        Evaluated,
        FinetuneEvent,
        FinetuneResult,
        StepDone,
    )

# Where each name lives; it is imported at first use (PEP 562), so that `import glm3sdk`
# stays cheap and imports no framework.
_HOMES = {
    "glm3sdk.bootstrap": (
        "Finetune",
        "PulledModel",
        "load_finetune",
        "load_runtime",
        "load_service",
        "load_tokenizer",
        "pull",
    ),
    "glm3sdk.bootstrap.conversion": ("convert",),
    "glm3sdk.bootstrap.resharding": ("merge_checkpoint", "split_checkpoint"),
    "glm3sdk.bootstrap.tools": ("load_tools",),
    "glm3sdk.domain.chat": (
        "CodeCell",
        "Completion",
        "CompletionEnd",
        "Delta",
        "FinishReason",
        "IncompleteStructure",
        "MalformedToolCall",
        "Message",
        "Reply",
        "ReplyEnd",
        "Role",
        "Text",
        "TextDelta",
        "ToolCall",
        "ToolCallDelta",
        "ToolCallEnd",
        "ToolCallStart",
        "ToolSpec",
        "Usage",
    ),
    "glm3sdk.domain.constraints": (
        "Choice",
        "Grammar",
        "JsonSchema",
        "Regex",
        "response_format",
    ),
    "glm3sdk.domain.generation": ("GenerationConfig",),
    "glm3sdk.domain.model": ("Glm3Config",),
    "glm3sdk.domain.replies": ("parse_reply",),
    "glm3sdk.domain.tool_functions": ("Tool", "tool"),
    "glm3sdk.services.chat": ("Glm3Service",),
    "glm3sdk.services.conversion": ("ConversionReport",),
    "glm3sdk.services.encoding": ("encode_chat",),
    "glm3sdk.services.finetune": (
        "CheckpointSaved",
        "Evaluated",
        "FinetuneEvent",
        "FinetuneResult",
        "StepDone",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CheckpointSaved",
    "Choice",
    "CodeCell",
    "Completion",
    "CompletionEnd",
    "ConversionReport",
    "Delta",
    "Evaluated",
    "Finetune",
    "FinetuneEvent",
    "FinetuneResult",
    "FinishReason",
    "GenerationConfig",
    "Glm3Config",
    "Glm3Service",
    "Grammar",
    "IncompleteStructure",
    "JsonSchema",
    "MalformedToolCall",
    "Message",
    "PulledModel",
    "Regex",
    "Reply",
    "ReplyEnd",
    "Role",
    "StepDone",
    "Text",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolSpec",
    "Usage",
    "__version__",
    "convert",
    "encode_chat",
    "load_finetune",
    "load_runtime",
    "load_service",
    "load_tokenizer",
    "load_tools",
    "merge_checkpoint",
    "parse_reply",
    "pull",
    "response_format",
    "split_checkpoint",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'glm3sdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
