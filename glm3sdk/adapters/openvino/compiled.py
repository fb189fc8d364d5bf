"""A compiled model, and the requests that sessions make of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import attrs
import numpy as np
from openvino import CompiledModel, Core, Shape, Tensor

from glm3sdk.adapters.openvino.huge_pages import HugePages
from glm3sdk.adapters.openvino.transformer import KEYS, VALUES, build_model
from glm3sdk.adapters.openvino.weights import Constants
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray, IntArray
from glm3sdk.ports.checkpoint_store import CheckpointReader


@functools.cache
def _core() -> Core:
    """The process's one Core, which is never destroyed while it runs.

    The CPU plugin gives the thread that loads it a stack for signal handlers and frees it on the
    thread that destroys the last Core. Were that another thread, the first would be left
    with a stack that is gone, and the next signal would be a segmentation fault.
    """
    return Core()


@attrs.frozen(eq=False)
class Appended:
    """New tokens of one slot.

    Attributes:
        input_ids: `[T]`.
        past: tokens that it holds already.
        blocks: of the cache, for all of its tokens.
        all_logits: whether the logits of every new token are wanted, not the last one's alone.
    """

    input_ids: IntArray
    past: int
    blocks: Sequence[int]
    all_logits: bool = False


class CompiledGlm3:
    """The weights, arranged for the kernels. Sessions share it.

    Args:
        config: the model's hyper-parameters.
        checkpoint: tensors as `quantized` has them.
        cache_dtype: what the kv_cache holds, "f32" or "u8".
        multiplies_bytes: whether the processor's kernels quantise activations.
    """

    def __init__(
        self,
        config: Glm3Config,
        checkpoint: CheckpointReader,
        *,
        cache_dtype: str,
        multiplies_bytes: bool,
    ) -> None:
        constants = Constants(checkpoint, config, multiplies_bytes=multiplies_bytes)
        model = build_model(config, constants)
        self.layers = config.num_layers
        huge_pages = HugePages()
        self.model: CompiledModel = _core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": cache_dtype,
                "PERFORMANCE_HINT": "LATENCY",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(constants.activation_group),
            },
        )
        self._constants = constants  # behind the model, and so freed after it
        # The first request arranges the weights for the kernels, which takes seconds: now,
        # rather than when somebody waits for a reply.
        PagedRequest(self, blocks=1).run([Appended(np.zeros(1, np.int32), 0, [0])])
        huge_pages.lay_out()


class PagedRequest:
    """A kv_cache and the request that reads and writes it.

    Args:
        compiled: the model.
        blocks: of the cache.
    """

    def __init__(self, compiled: CompiledGlm3, *, blocks: int) -> None:
        self._request = compiled.model.create_infer_request()
        self._compiled = compiled  # whose constants the request reads, whoever closes first
        self._caches: list[Tensor] = []
        for layer in range(compiled.layers):
            for kind in (KEYS, VALUES):
                wanted = compiled.model.input(f"{kind}.{layer}")
                sizes = [each.get_length() for each in wanted.get_partial_shape()[1:]]
                # Memory that was never written to is not taken from the system.
                cache = Tensor(wanted.get_element_type(), Shape([blocks, *sizes]))
                self._request.set_tensor(f"{kind}.{layer}", cache)
                self._caches.append(cache)

    def run(self, sequences: Sequence[Appended]) -> FloatArray:
        """Append tokens to slots; what logits are wanted `[W, V]`, slot by slot."""
        lengths = [len(each.input_ids) for each in sequences]
        ends = [each.past + length for each, length in zip(sequences, lengths, strict=True)]
        begins = _begins(lengths)
        pairs = list(zip(sequences, begins[1:], lengths, strict=True))
        wanted = [
            np.arange(end - (length if each.all_logits else 1), end) for each, end, length in pairs
        ]
        positions = [np.arange(each.past, end) for each, end in zip(sequences, ends, strict=True)]
        self._request.infer(
            {
                "input_ids": _int32(np.concatenate([each.input_ids for each in sequences])[None]),
                "positions": _int32(np.concatenate(positions)[None]),
                "wanted": _int32(np.concatenate(wanted)),
                "past_lengths": _int32([each.past for each in sequences]),
                "begins": _int32(begins),
                "blocks": _int32([block for each in sequences for block in each.blocks]),
                "block_begins": _int32(_begins(len(each.blocks) for each in sequences)),
                "longest": _int32(max(ends)),
            }
        )
        logits: FloatArray = self._request.get_output_tensor(0).data.copy()
        return logits

    def copy(self, source: int, target: int) -> None:
        """Copy a block of every layer's keys and values."""
        for cache in self._caches:
            cache.data[target] = cache.data[source]


def _begins(lengths: Iterable[int]) -> list[int]:
    return [0, *np.cumsum(list(lengths)).tolist()]


def _int32(values: object) -> IntArray:
    return np.asarray(values, np.int32)
