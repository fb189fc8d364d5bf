"""A loaded model: a service, a runtime or a tokenizer alone."""

from __future__ import annotations

import os
from pathlib import Path

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.bootstrap.models import BUNDLED, is_fetched, model_directory, open_model
from glm3sdk.bootstrap.pulling import pull_tokenizer
from glm3sdk.bootstrap.runtimes import DEFAULT_RUNTIME, runtime_factory, start_runtime
from glm3sdk.errors import InvalidTokenizerError
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.chat import Glm3Service


def load_service(
    model: str | os.PathLike[str] = "tiny",
    *,
    runtime: str = DEFAULT_RUNTIME,
    slots: int = 8,
    max_seq_length: int | None = None,
    dtype: str | None = None,
    device_id: int = 0,
    max_device_memory: str | None = None,
) -> Glm3Service:
    """Load a model and its tokenizer, ready to chat. Close it, or use it in a `with`.

    Args:
        model: "tiny", the bundled model; a directory in Hugging Face layout, a LoRA adapter
            (its base model is loaded too), or the directory of a finetune run; or what is
            fetched into the cache first: "glm3-6b", or a URI such as "obs://bucket/run-42".
        runtime: "mindspore-cpu", "mindspore-ascend", or what a plugin registered.
        slots: conversations that are decoded side by side.
        max_seq_length: most tokens of prompt and reply together; by default the model's.
        dtype: what to hold weights in; by default what the runtime prefers.
        device_id: which card.
        max_device_memory: most memory to take of a card, such as "59GB".

    Raises:
        InvalidConfigError: config.json is missing or of another architecture.
        InvalidCheckpointError: the directory or a tensor is missing, damaged or misshapen.
        InvalidTokenizerError: tokenizer.model is missing or does not fit.
        UnknownNameError: no runtime goes by that name.
        BackendUnavailableError: the runtime's framework or device is not there.
        Glm3Error: what `pull` raises, for a name or a URI.
    """
    runtime_factory(runtime)  # a wrong name is known before a large checkpoint is opened
    opened = open_model(model)
    tokenizer = load_tokenizer(opened.tokenizer_path or opened.path)
    loaded = start_runtime(
        opened,
        runtime=runtime,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
    )
    try:
        return Glm3Service(
            runtime=loaded,
            tokenizer=tokenizer,
            slots=slots,
            max_seq_length=max_seq_length,
            owns_runtime=True,
            constraints=LlguidanceConstraints(tokenizer),
        )
    except BaseException:
        loaded.close()
        raise


def load_runtime(
    model: str | os.PathLike[str] = "tiny",
    *,
    runtime: str = DEFAULT_RUNTIME,
    dtype: str | None = None,
    device_id: int = 0,
    max_device_memory: str | None = None,
) -> ModelRuntime:
    """Load a model's weights alone: tokens in, logits out. Arguments as `load_service`."""
    runtime_factory(runtime)
    return start_runtime(
        open_model(model),
        runtime=runtime,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
    )


def load_tokenizer(path: str | os.PathLike[str] = "tiny") -> Tokenizer:
    """Load a SentencePiece tokenizer.

    Args:
        path: a tokenizer.model, a directory that holds one, "tiny", or a model's published name
            or URI, of which the tokenizer alone is fetched.

    Raises:
        InvalidTokenizerError: it is missing or cannot be read.
        Glm3Error: what `pull` raises, for a name or a URI.
    """
    if os.fspath(path) in BUNDLED:
        path = model_directory(path)
    elif is_fetched(path):
        path = pull_tokenizer(os.fspath(path))
    if not Path(path).exists():
        raise InvalidTokenizerError(
            f"no tokenizer at {os.fspath(path)!r}: pass a tokenizer.model, a directory that "
            "holds one, or 'tiny'"
        )
    return SentencePieceTokenizer(Path(path))
