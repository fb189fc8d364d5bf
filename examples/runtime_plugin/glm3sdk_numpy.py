"""ChatGLM3 in plain numpy, for glm3sdk: `load_service("tiny", runtime="numpy")`.

Every call computes the whole sequence anew, so it is slow and simple: put your engine in its
place. What glm3sdk asks of a runtime is the two classes; how one is found, the hook.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import ServiceClosedError, UnsupportedOptionError
from glm3sdk.hookspecs import RegisterRuntime, hookimpl
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.ports.slots import SlotTable
from glm3sdk.ports.training import TrainingPlan, TrainingSession

Floats = NDArray[np.float32]


@hookimpl
def glm3_register_runtimes(register: RegisterRuntime) -> None:
    """Let glm3sdk know of the runtime; nothing is loaded here."""
    register("numpy", load_numpy_runtime)


def load_numpy_runtime(
    *,
    config: Glm3Config,
    checkpoint: CheckpointReader,
    dtype: str | None,
    device_id: int,
    max_device_memory: str | None,
) -> NumpyRuntime:
    """Load a model; a card and its memory mean nothing here."""
    del device_id, max_device_memory
    if dtype not in (None, "float32"):
        raise UnsupportedOptionError(f"runtime 'numpy' computes in float32, not in {dtype!r}")
    return NumpyRuntime(config, checkpoint)


class NumpyRuntime:
    """A `ModelRuntime`: the weights."""

    def __init__(self, config: Glm3Config, checkpoint: CheckpointReader) -> None:
        self.config = config
        self.capabilities = RuntimeCapabilities(name="numpy", dtype="float32")
        self._weights: dict[str, Floats] | None = {
            name: checkpoint.read(name).astype(np.float32) for name in config.tensor_shapes()
        }

    def start_decode(self, *, slots: int, max_seq_length: int) -> NumpySession:
        """Allocate slots."""
        table = SlotTable(self.config, slots=slots, max_seq_length=max_seq_length)
        if self._weights is None:
            raise ServiceClosedError("this runtime was closed; load another one")
        return NumpySession(self.config, self._weights, table)

    def start_training(self, *, plan: TrainingPlan) -> TrainingSession:
        """Refuse: `capabilities` says so too."""
        del plan
        raise UnsupportedOptionError("runtime 'numpy' does not train; use 'mindspore-cpu'")

    def close(self) -> None:
        """Free the weights."""
        self._weights = None


class NumpySession:
    """A `DecodeSession`: the tokens of every slot. `SlotTable` does all of the checks."""

    def __init__(self, config: Glm3Config, weights: dict[str, Floats], table: SlotTable) -> None:
        self._config, self._weights, self._table = config, weights, table
        self._tokens: list[list[int]] = [[] for _ in range(table.slots)]

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._table.slots

    @property
    def max_seq_length(self) -> int:
        """Most tokens that a slot holds."""
        return self._table.max_seq_length

    def prefill(
        self, slot: int, input_ids: Sequence[int] | NDArray[np.int32], *, all_logits: bool = False
    ) -> Floats:
        """Append tokens `[T]` to a slot; logits `[V]`, or `[T, V]`."""
        slot, ids = self._table.check_prefill(slot, input_ids)
        logits = forward(self._config, self._weights, [*self._tokens[slot], *ids.tolist()])
        self._append(slot, ids.tolist())
        return logits[-len(ids) :].copy() if all_logits else logits[-1].copy()

    def decode(self, slots: Sequence[int], token_ids: Sequence[int] | NDArray[np.int32]) -> Floats:
        """Append one token to each of B slots; logits `[B, V]`."""
        chosen, ids = self._table.check_decode(slots, token_ids)
        pairs = list(zip(chosen, ids.tolist(), strict=True))
        rows = [
            forward(self._config, self._weights, [*self._tokens[slot], token])[-1]
            for slot, token in pairs
        ]
        for slot, token in pairs:
            self._append(slot, [token])
        return np.stack(rows)

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._table.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first tokens of a slot."""
        self._table.truncate(slot, length)
        del self._tokens[slot][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a slot the first tokens of another."""
        self._table.copy(source, target, length)
        self._tokens[target] = self._tokens[source][:length]

    def close(self) -> None:
        """Refuse further calls."""
        self._table.close()

    def _append(self, slot: int, ids: list[int]) -> None:
        self._tokens[slot] += ids
        self._table.advance(slot, len(ids))


def forward(config: Glm3Config, weights: dict[str, Floats], ids: Sequence[int]) -> Floats:
    """Logits `[T, V]` after each of the tokens `[T]`."""
    epsilon = config.layernorm_epsilon
    stream = weights["transformer.embedding.word_embeddings.weight"][list(ids)]
    rotation = _rotation(config, len(ids))
    for number in range(config.num_layers):
        layer = f"transformer.encoder.layers.{number}."
        rows = _rms_norm(stream, weights[layer + "input_layernorm.weight"], epsilon)
        mixed = rows @ weights[layer + "self_attention.query_key_value.weight"].T
        mixed += weights[layer + "self_attention.query_key_value.bias"]
        seen = _attention(config, mixed, rotation)
        stream = stream + seen @ weights[layer + "self_attention.dense.weight"].T
        rows = _rms_norm(stream, weights[layer + "post_attention_layernorm.weight"], epsilon)
        gate, value = np.split(rows @ weights[layer + "mlp.dense_h_to_4h.weight"].T, 2, axis=-1)
        inner = gate / (1 + np.exp(-gate)) * value
        stream = stream + inner @ weights[layer + "mlp.dense_4h_to_h.weight"].T
    rows = _rms_norm(stream, weights["transformer.encoder.final_layernorm.weight"], epsilon)
    logits: Floats = rows @ weights["transformer.output_layer.weight"].T
    return logits


def _attention(config: Glm3Config, mixed: Floats, rotation: NDArray[np.complex64]) -> Floats:
    """Causal attention over `[T, (heads + 2 groups) * width]`; gives `[T, heads * width]`."""
    heads, groups = config.num_attention_heads, config.multi_query_group_num
    parts = mixed.reshape(len(mixed), heads + 2 * groups, config.kv_channels).swapaxes(0, 1)
    query, key, value = parts[:heads], parts[heads : heads + groups], parts[heads + groups :]
    key = np.repeat(_rotated(key, rotation), heads // groups, axis=0)
    value = np.repeat(value, heads // groups, axis=0)
    scores = _rotated(query, rotation) @ key.swapaxes(1, 2) / np.sqrt(config.kv_channels)
    later = np.triu(np.ones((len(mixed), len(mixed)), bool), 1)
    shares = np.where(later, -np.inf, scores)
    shares = np.exp(shares - shares.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    context = (shares @ value).swapaxes(0, 1).reshape(len(mixed), -1)
    return context.astype(np.float32)


def _rotation(config: Glm3Config, length: int) -> NDArray[np.complex64]:
    """Turns of the pairs in the first half of a head, at each position `[T, width / 4]`."""
    rotary = config.kv_channels // 2
    speeds = (10000.0 * config.rope_ratio) ** (-np.arange(0, rotary, 2) / rotary)
    return np.exp(1j * np.outer(np.arange(length), speeds)).astype(np.complex64)


def _rotated(heads: Floats, rotation: NDArray[np.complex64]) -> Floats:
    rotary = 2 * rotation.shape[-1]
    pairs = np.ascontiguousarray(heads[..., :rotary]).view(np.complex64) * rotation
    return np.concatenate([pairs.view(np.float32), heads[..., rotary:]], axis=-1)


def _rms_norm(rows: Floats, scale: Floats, epsilon: float) -> Floats:
    normed: Floats = rows / np.sqrt(np.mean(rows * rows, axis=-1, keepdims=True) + epsilon) * scale
    return normed
