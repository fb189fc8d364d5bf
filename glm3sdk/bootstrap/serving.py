"""A loaded model: a service, a runtime or a tokenizer alone."""

from __future__ import annotations

import os
from pathlib import Path

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.adapters.mindspore.runtime import ALONE
from glm3sdk.bootstrap.models import BUNDLED, is_fetched, model_directory, open_model
from glm3sdk.bootstrap.pulling import pull_tokenizer
from glm3sdk.bootstrap.runtimes import (
    DEFAULT_RUNTIME,
    runtime_factory,
    shared_profile,
    start_runtime,
)
from glm3sdk.bootstrap.tokenizers import DEFAULT_TOKENIZER, tokenizer_factory
from glm3sdk.bootstrap.topology import enter_job
from glm3sdk.domain.parallel import ParallelPlan
from glm3sdk.errors import InvalidTokenizerError
from glm3sdk.ports.model_runtime import ModelRuntime
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.chat import Glm3Service


def load_service(
    model: str | os.PathLike[str] = "tiny",
    *,
    runtime: str | None = None,
    slots: int = 8,
    max_seq_length: int | None = None,
    dtype: str | None = None,
    device_id: int = 0,
    max_device_memory: str | None = None,
    tokenizer: str = DEFAULT_TOKENIZER,
    tensor_parallel: int = 1,
) -> Glm3Service:
    """Load a model and its tokenizer, ready to chat. Close it, or use it in a `with`.

    Args:
        model: "tiny", the bundled model; a directory in Hugging Face layout, a LoRA adapter
            (its base model is loaded too), the directory of a finetune run, or one that was
            converted for OpenVINO; or what is fetched into the cache first: "glm3-6b", or a URI
            such as "obs://bucket/run-42".
        runtime: "mindspore-cpu", "mindspore-ascend", "openvino", or what a plugin registered;
            None is what the model was converted for, else "mindspore-cpu".
        slots: conversations that are decoded side by side.
        max_seq_length: most tokens of prompt and reply together; by default the model's.
        dtype: what to hold weights in; by default what the runtime prefers.
        device_id: which card.
        max_device_memory: most memory to take of a card, such as "59GB".
        tokenizer: "sentencepiece", or what a plugin registered.
        tensor_parallel: ranks that hold the model together, all that `glm3 launch` started. Each
            runs the same program: the same calls in the same order, with a seed where replies
            are sampled; each gets the same reply.

    Returns:
        A service that owns the model: closing it frees the weights.

    Raises:
        InvalidParallelPlanError: so many ranks were not started, or cannot share this model.
        InvalidConfigError: config.json is missing or of another architecture.
        InvalidCheckpointError: the directory or a tensor is missing, damaged or misshapen.
        InvalidTokenizerError: tokenizer.model is missing or does not fit.
        UnknownNameError: no runtime or tokenizer goes by that name.
        BackendUnavailableError: the runtime's framework or device is not there.
        Glm3Error: what `pull` raises, for a name or a URI.
    """
    if runtime is not None:
        runtime_factory(runtime)  # a wrong name is known before a large checkpoint is opened
    tokenizer_factory(tokenizer)
    opened = open_model(model)
    loaded_tokenizer = load_tokenizer(opened.tokenizer_path or opened.path, tokenizer=tokenizer)
    place = ALONE
    if tensor_parallel != 1:
        profile = shared_profile(runtime or opened.runtime or DEFAULT_RUNTIME)
        plan = ParallelPlan(tensor=tensor_parallel)
        topology, place = enter_job(plan, opened.config, device=profile.device_target.lower())
        device_id = topology.placement.device_id
    loaded = start_runtime(
        opened,
        runtime=runtime,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
        place=place,
    )
    try:
        return Glm3Service(
            runtime=loaded,
            tokenizer=loaded_tokenizer,
            slots=slots,
            max_seq_length=max_seq_length,
            owns_runtime=True,
            constraints=LlguidanceConstraints(loaded_tokenizer),
        )
    except BaseException:
        loaded.close()
        raise


def load_runtime(
    model: str | os.PathLike[str] = "tiny",
    *,
    runtime: str | None = None,
    dtype: str | None = None,
    device_id: int = 0,
    max_device_memory: str | None = None,
) -> ModelRuntime:
    """Load a model's weights alone: tokens in, logits out; close it when done.

    Args:
        model: as `load_service` takes it.
        runtime: its name; None is what the model was converted for, else "mindspore-cpu".
        dtype: what to hold weights in; by default what the runtime prefers.
        device_id: which card.
        max_device_memory: most memory to take of a card, such as "59GB".

    Returns:
        The runtime, for `Glm3Service(runtime=..., tokenizer=...)` or a decode session.

    Raises:
        Glm3Error: what `load_service` raises of a model or a runtime.
    """
    if runtime is not None:
        runtime_factory(runtime)
    return start_runtime(
        open_model(model),
        runtime=runtime,
        dtype=dtype,
        device_id=device_id,
        max_device_memory=max_device_memory,
    )


def load_tokenizer(
    path: str | os.PathLike[str] = "tiny", *, tokenizer: str = DEFAULT_TOKENIZER
) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path: a tokenizer.model, a directory that holds one, "tiny", or a model's published name
            or URI, of which the tokenizer alone is fetched.
        tokenizer: "sentencepiece", or what a plugin registered.

    Returns:
        The tokenizer; it loads no weights and needs no framework.

    Raises:
        UnknownNameError: no tokenizer goes by that name.
        InvalidTokenizerError: it is missing or cannot be read.
        Glm3Error: what `pull` raises, for a name or a URI.
    """
    factory = tokenizer_factory(tokenizer)
    if os.fspath(path) in BUNDLED:
        path = model_directory(path)
    elif is_fetched(path):
        path = pull_tokenizer(os.fspath(path))
    if not Path(path).exists():
        raise InvalidTokenizerError(
            f"no tokenizer at {os.fspath(path)!r}: pass a tokenizer.model, a directory that "
            "holds one, or 'tiny'"
        )
    return factory(Path(path))
