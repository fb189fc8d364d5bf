"""The two graphs of generation over one static kv_cache.

The cache of a layer is two Parameters `[(slots + 1) * G * L, D]`, a row per slot, group and
position; the extra slot takes what padded lanes of a batch write. Both graphs share the
Parameters, so each sees what the other wrote.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.attention import decode_attention, prefill_attention
from glm3sdk.adapters.mindspore.model.rope import rope_tables
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.model import Glm3Config


class KvCache:
    """The Parameters of a session's cache.

    Attributes:
        keys: a Parameter a layer, `[(slots + 1) * G * length, D]`.
        values: the same.
    """

    def __init__(self, config: Glm3Config, *, slots: int, length: int, dtype: object) -> None:
        self.slots = slots
        self.length = length
        shape = ((slots + 1) * config.multi_query_group_num * length, config.kv_channels)

        def parameters(kind: str) -> list[Parameter]:
            return [
                Parameter(
                    ops.zeros(shape, dtype), name=f"{kind}_cache.{layer}", requires_grad=False
                )
                for layer in range(config.num_layers)
            ]

        self.keys = parameters("key")
        self.values = parameters("value")


class _Graph(nn.Cell):
    """What prefill and decode have in common."""

    def __init__(self, config: Glm3Config, cells: Glm3Cells, cache: KvCache) -> None:
        super().__init__(auto_prefix=False)
        self.model = cells
        self.layers = cells.layers
        self.keys = ParameterTuple(cache.keys)
        self.values = ParameterTuple(cache.values)
        self.groups = config.multi_query_group_num
        self.channels = config.kv_channels
        self.context_width = config.num_attention_heads * self.channels
        self.slots = cache.slots
        self.length = cache.length
        self.dtype = cells.word_embeddings.dtype
        cos, sin = rope_tables(config, cache.length)
        self.cos = Tensor(cos).astype(self.dtype)
        self.sin = Tensor(sin).astype(self.dtype)
        self.scatter = ops.ScatterUpdate()
        self.gather = ops.Gather()
        self.transpose = ops.Transpose()


class DecodeGraph(_Graph):
    """One token for each of B slots."""

    def __init__(
        self, config: Glm3Config, profile: DeviceProfile, cells: Glm3Cells, cache: KvCache
    ) -> None:
        super().__init__(config, cells, cache)
        self.attention = decode_attention(config, profile, dtype=self.dtype, length=cache.length)

    def construct(
        self, token_ids: Tensor, positions: Tensor, slots: Tensor, rows: Tensor
    ) -> Tensor:
        """Append a token to B slots.

        Args:
            token_ids: `[B]`.
            positions: `[B]`, where each token goes.
            slots: `[B]`.
            rows: `[B * G]`, the cache rows to write.

        Returns:
            Logits `[B, V]`.
        """
        x = self.model.embed(token_ids)
        cos = self.gather(self.cos, positions, 0).expand_dims(1)
        sin = self.gather(self.sin, positions, 0).expand_dims(1)
        mask = self.attention.mask(positions)
        for index, layer in enumerate(self.layers):
            query, key, value = layer.project(x, cos, sin)
            keys = self._append(self.keys[index], rows, slots, key)
            values = self._append(self.values[index], rows, slots, value)
            context = self.attention(query, keys, values, mask)
            x = layer.finish(x, context.reshape((-1, self.context_width)))
        return self.model.every_logit(x)

    def _append(self, cache: Parameter, rows: Tensor, slots: Tensor, new: Tensor) -> Tensor:
        """Write `new` `[B, G, D]` and return the slots' cache `[B, G, L, D]`."""
        written = self.scatter(cache, rows, new.reshape((-1, self.channels)))
        by_slot = written.reshape((self.slots + 1, self.groups, self.length, self.channels))
        return self.gather(by_slot, slots, 0)


class PrefillGraph(_Graph):
    """Any number of tokens for one slot; every length shares one compiled graph."""

    def __init__(
        self, config: Glm3Config, profile: DeviceProfile, cells: Glm3Cells, cache: KvCache
    ) -> None:
        super().__init__(config, cells, cache)
        self.attention = prefill_attention(config, profile, dtype=self.dtype)
        vector = Tensor(shape=[None], dtype=ms.int32)
        self.set_inputs(vector, vector, vector, vector, vector, vector, vector)

    def construct(
        self,
        input_ids: Tensor,
        positions: Tensor,
        head_positions: Tensor,
        rows: Tensor,
        context_rows: Tensor,
        context_positions: Tensor,
        logit_rows: Tensor,
    ) -> Tensor:
        """Append T tokens to a slot that then holds C.

        Args:
            input_ids: `[T]`.
            positions: `[T]`.
            head_positions: `[H / G * T]`, `positions` once per head of a group.
            rows: `[T * G]`, the cache rows to write.
            context_rows: `[G * C]`, the cache rows that the slot then holds.
            context_positions: `[C]`, 0..C-1.
            logit_rows: `[R]`, which of the T tokens to give logits for.

        Returns:
            Logits `[R, V]`.
        """
        x = self.model.embed(input_ids)
        cos = self.gather(self.cos, positions, 0).expand_dims(1)
        sin = self.gather(self.sin, positions, 0).expand_dims(1)
        mask = self.attention.mask(positions, head_positions, context_positions)
        for index, layer in enumerate(self.layers):
            query, key, value = layer.project(x, cos, sin)
            keys = self._append(self.keys[index], rows, context_rows, key)
            values = self._append(self.values[index], rows, context_rows, value)
            context = self.attention(self.transpose(query, (1, 0, 2)), keys, values, mask)
            context = self.transpose(context, (1, 0, 2)).reshape((-1, self.context_width))
            x = layer.finish(x, context)
        return self.model.every_logit(self.gather(x, logit_rows, 0))

    def _append(self, cache: Parameter, rows: Tensor, context_rows: Tensor, new: Tensor) -> Tensor:
        """Write `new` `[T, G, D]` and return the slot's context `[G, C, D]`."""
        written = self.scatter(cache, rows, new.reshape((-1, self.channels)))
        return self.gather(written, context_rows, 0).reshape((self.groups, -1, self.channels))


class CopyGraph(nn.Cell):
    """Copies cache rows of every layer from one place to another."""

    def __init__(self, cache: KvCache) -> None:
        super().__init__(auto_prefix=False)
        self.caches = ParameterTuple([*cache.keys, *cache.values])
        self.scatter = ops.ScatterUpdate()
        self.gather = ops.Gather()
        vector = Tensor(shape=[None], dtype=ms.int32)
        self.set_inputs(vector, vector)

    def construct(self, source_rows: Tensor, target_rows: Tensor) -> Tensor:
        """Copy rows `[N]` to rows `[N]`; returns target_rows, for a graph must return a value."""
        for cache in self.caches:
            self.scatter(cache, target_rows, self.gather(cache, source_rows, 0))
        return target_rows
