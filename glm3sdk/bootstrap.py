"""The only module that chooses adapters: names and paths become loaded parts."""

from __future__ import annotations

import difflib
import os
import sys
from functools import partial
from importlib import resources
from pathlib import Path

from glm3sdk.adapters.mindspore.profiles import PROFILES
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.storage.validation import require_tensors
from glm3sdk.domain.model import PRESETS
from glm3sdk.errors import InvalidCheckpointError, InvalidTokenizerError, unknown_name
from glm3sdk.hookspecs import RegisterRuntime, hookimpl
from glm3sdk.plugins import plugin_manager, registered_runtimes
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.chat import Glm3Service

DEFAULT_RUNTIME = "mindspore-cpu"

BUNDLED = ("tiny",)


@hookimpl
def glm3_register_runtimes(register: RegisterRuntime) -> None:
    """Register the runtimes that ship with the SDK, as any plugin would."""
    for name, profile in PROFILES.items():
        register(name, partial(MindSporeRuntime, profile=profile))


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
        model: "tiny", the bundled model, or a directory in Hugging Face layout.
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
    """
    path = _model_directory(model)
    tokenizer = load_tokenizer(path)
    loaded = load_runtime(
        path,
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
    factories = registered_runtimes(plugin_manager([sys.modules[__name__]]))
    if runtime not in factories:
        raise unknown_name("runtime", runtime, factories)
    directory = HuggingFaceDirectory(_model_directory(model))
    require_tensors(directory, directory.config)
    return factories[runtime](
        config=directory.config,
        checkpoint=directory,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
    )


def load_tokenizer(path: str | os.PathLike[str] = "tiny") -> Tokenizer:
    """Load a SentencePiece tokenizer.

    Args:
        path: a tokenizer.model, a directory that holds one, or "tiny".

    Raises:
        InvalidTokenizerError: it is missing or cannot be read.
    """
    if os.fspath(path) in BUNDLED:
        path = _model_directory(path)
    if not Path(path).exists():
        raise InvalidTokenizerError(
            f"no tokenizer at {os.fspath(path)!r}: pass a tokenizer.model, a directory that "
            "holds one, or 'tiny'"
        )
    return SentencePieceTokenizer(Path(path))


def _model_directory(model: str | os.PathLike[str]) -> Path:
    name = os.fspath(model)
    if name in BUNDLED:
        return Path(str(resources.files("glm3sdk") / "assets" / name))
    path = Path(name)
    if path.exists():
        return path
    if name in PRESETS:
        raise InvalidCheckpointError(
            f"{name!r} does not ship with the SDK: download its Hugging Face repository "
            "and pass the directory's path"
        )
    message = f"no model directory {name!r} (bundled: {', '.join(BUNDLED)})"
    close = difflib.get_close_matches(name, BUNDLED, n=1)
    raise InvalidCheckpointError(message + (f"; did you mean {close[0]!r}?" if close else ""))
