"""The ModelRuntime on OpenVINO's CPU: float32 activations, weights in 8 or 4 bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from glm3sdk.adapters.openvino.failures import require_openvino, translated
from glm3sdk.adapters.openvino.processor import multiplies_bytes, read_cpu_info, require_avx2
from glm3sdk.adapters.openvino.quantized import (
    INT4,
    INT8,
    NONE,
    quantization_of,
    quantized_in_memory,
    require_quantized,
)
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import ServiceClosedError, UnsupportedOptionError
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.ports.model_runtime import DecodeSession, RuntimeCapabilities
from glm3sdk.ports.training import TrainingPlan, TrainingSession

if TYPE_CHECKING:
    from glm3sdk.adapters.openvino.compiled import CompiledGlm3

NAME = "openvino"
FLOAT32 = "float32"
DTYPES = (FLOAT32, INT8, INT4)
CACHE_DTYPES = ("f32", "u8")


class OpenVinoRuntime:
    """A ChatGLM3 held by OpenVINO on this machine's processors.

    Args:
        config: the model's hyper-parameters.
        checkpoint: a converted model's tensors, or a model's own, already checked against the
            config; the latter are quantised into memory where `dtype` says so.
        dtype: "float32", "int8" or "int4"; None is what the checkpoint has.
        device_id: 0; there is one processor.
        max_device_memory: nothing; it is for cards.
        cache_dtype: "f32", or "u8" for a kv_cache of a quarter of the size, whose error shows.
        cpu_info: gives what Linux says of the processors.

    Attributes:
        load_s: seconds that loading took, arranging the weights for the kernels included.

    Raises:
        BackendUnavailableError: OpenVINO is not there, or the processor lacks AVX2.
        UnsupportedOptionError: a dtype that it does not have, or a card.
        InvalidCheckpointError: a tensor is missing or cannot be read.
        RuntimeFailureError: OpenVINO failed.
    """

    def __init__(
        self,
        *,
        config: Glm3Config,
        checkpoint: CheckpointReader,
        dtype: str | None = None,
        device_id: int = 0,
        max_device_memory: str | None = None,
        cache_dtype: str = "f32",
        cpu_info: Callable[[], str] = read_cpu_info,
    ) -> None:
        stored = quantization_of(checkpoint.tensors)
        held = FLOAT32 if stored == NONE else stored
        if device_id or max_device_memory is not None:
            raise UnsupportedOptionError(
                "the runtime 'openvino' runs on the processor alone; leave device_id and "
                "max_device_memory out"
            )
        _check_dtypes(held, stored, dtype, cache_dtype)
        processor = cpu_info()
        require_avx2(processor)
        require_openvino()
        began = time.monotonic()
        if stored != NONE:
            require_quantized(checkpoint, config)
        elif dtype in (INT8, INT4):
            checkpoint, held = quantized_in_memory(checkpoint, config, dtype), dtype
        self._config = config
        self._capabilities = RuntimeCapabilities(name=NAME, dtype=held)
        with translated():
            # Imported here: openvino is an extra.
            from glm3sdk.adapters.openvino.compiled import CompiledGlm3

            self._compiled: CompiledGlm3 | None = CompiledGlm3(
                config,
                checkpoint,
                cache_dtype=cache_dtype,
                multiplies_bytes=multiplies_bytes(processor),
            )
        self.load_s = time.monotonic() - began

    @property
    def config(self) -> Glm3Config:
        """The model's hyper-parameters."""
        return self._config

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime can do."""
        return self._capabilities

    def start_decode(self, *, slots: int, max_seq_length: int) -> DecodeSession:
        """Allocate a kv_cache; see the port."""
        if self._compiled is None:
            raise ServiceClosedError("this runtime was closed; load it again")
        from glm3sdk.adapters.openvino.session import OpenVinoDecodeSession

        return OpenVinoDecodeSession(
            self._config, self._compiled, slots=slots, max_seq_length=max_seq_length
        )

    def start_training(self, *, plan: TrainingPlan) -> TrainingSession:  # noqa: ARG002
        """Refuse; see the port."""
        raise UnsupportedOptionError(
            "the runtime 'openvino' does not train; train with 'mindspore-cpu' or "
            "'mindspore-ascend' and convert the result"
        )

    def close(self) -> None:
        """Free the weights; sessions that are still open keep them until they are closed too."""
        self._compiled = None


def _check_dtypes(held: str, stored: str, dtype: str | None, cache_dtype: str) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise UnsupportedOptionError(
            f"the runtime 'openvino' has no dtype {dtype!r}; pass one of {', '.join(DTYPES)}"
        )
    if stored != NONE and dtype not in (None, held):
        raise UnsupportedOptionError(
            f"this model was converted to {held}, and dtype={dtype!r} was asked for; leave dtype "
            "out, or convert the model it was made from"
        )
    if cache_dtype not in CACHE_DTYPES:
        raise UnsupportedOptionError(
            f"the kv_cache cannot be {cache_dtype!r}; pass one of {', '.join(CACHE_DTYPES)}"
        )
