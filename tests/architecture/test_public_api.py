from __future__ import annotations

import pytest

import glm3sdk

PUBLIC_NAMES = [
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


def test_the_public_names_are_exactly_these_in_order():
    assert list(glm3sdk.__all__) == sorted(PUBLIC_NAMES)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_resolves(name: str):
    assert getattr(glm3sdk, name) is not None


def test_dir_lists_the_names_that_are_not_loaded_yet():
    assert set(PUBLIC_NAMES) <= set(dir(glm3sdk))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = glm3sdk.no_such_name
