"""Attention cores: how turned queries meet keys, in explicit products or a device's kernels.

Both compute `softmax(query @ key.T / sqrt(D) + mask) @ value`, a key head for H/G query heads.
The explicit cores are for float32; the kernels take half precision alone, so float32
weights decode with the explicit cores on every device, and train with bfloat16 attention.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.model import Glm3Config

MASKED = -1e9  # finite: a row of -inf alone would make softmax NaN

# FlashAttentionScore's sparse mode 2 is the causal mask anchored at the upper left, and
# takes it compressed to this size for every sequence length.
CAUSAL = 2
COMPRESSED_MASK = 2048

HALF = (ms.float16, ms.bfloat16)


class _Core(nn.Cell):
    """Sizes and operators that the cores share."""

    def __init__(self, config: Glm3Config) -> None:
        super().__init__(auto_prefix=False)
        self.heads = config.num_attention_heads
        self.groups = config.multi_query_group_num
        self.group_heads = self.heads // self.groups
        self.channels = config.kv_channels
        self.scale = 1.0 / math.sqrt(self.channels)
        self.batch_matmul = ops.BatchMatMul()
        self.batch_matmul_t = ops.BatchMatMul(transpose_b=True)
        self.softmax = ops.Softmax(-1)
        self.cast = ops.Cast()


class ExplicitDecodeAttention(_Core):
    """One query a sequence over the whole cache."""

    def __init__(self, config: Glm3Config, *, length: int) -> None:
        super().__init__(config)
        self.every_position = Tensor(np.arange(length, dtype=np.int32))

    def mask(self, positions: Tensor) -> Tensor:
        """Positions `[B]` to `[B, 1, 1, L]`; what follows them is other tokens' leftovers."""
        hidden = self.every_position.expand_dims(0) > positions.expand_dims(1)
        mask = self.cast(hidden, ms.float32) * MASKED
        return mask.expand_dims(1).expand_dims(1)

    def construct(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Query `[B, H, D]`, keys and values `[B, G, L, D]`; returns `[B, G, H/G, D]`."""
        query = query.reshape((-1, self.groups, self.group_heads, self.channels))
        scores = self.batch_matmul_t(query, keys) * self.scale + mask
        return self.batch_matmul(self.softmax(scores), values)


class FusedDecodeAttention(_Core):
    """The same by IncreFlashAttention."""

    def __init__(self, config: Glm3Config, *, length: int) -> None:
        super().__init__(config)
        self.every_position = Tensor(np.arange(length, dtype=np.int32))
        self.kernel = ops.auto_generate.IncreFlashAttention(
            num_heads=self.heads,
            input_layout="BNSD",
            scale_value=self.scale,
            num_key_value_heads=self.groups,
            inner_precise=0,  # float16 softmax in high precision; the default is fast instead
        )

    def mask(self, positions: Tensor) -> Tensor:
        """Positions `[B]` to `[B, 1, 1, L]`, true where the kernel must not look.

        It would take lengths too, but on the host: every layer would wait for the device.
        """
        hidden = self.every_position.expand_dims(0) > positions.expand_dims(1)
        return hidden.expand_dims(1).expand_dims(1)

    def construct(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Query `[B, H, D]`, keys and values `[B, G, L, D]`; returns `[B, H, 1, D]`."""
        return self.kernel(query.expand_dims(2), [keys], [values], mask)


class ExplicitPrefillAttention(_Core):
    """T queries of one sequence over its C positions."""

    def mask(
        self,
        positions: Tensor,  # noqa: ARG002  # both prefill cores are called alike
        head_positions: Tensor,
        context: Tensor,
    ) -> Tensor:
        """Positions `[T]`, again per head of a group `[H/G * T]`, and `[C]`; `[H/G * T, C]`."""
        hidden = context.expand_dims(0) > head_positions.expand_dims(1)
        return self.cast(hidden, ms.float32) * MASKED

    def construct(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Query `[H, T, D]`, keys and values `[G, C, D]`; returns `[H, T, D]`."""
        grouped = query.reshape((self.groups, -1, self.channels))
        scores = self.batch_matmul_t(grouped, keys) * self.scale + mask
        context = self.batch_matmul(self.softmax(scores), values)
        return context.reshape((self.heads, -1, self.channels))


class FusedPrefillAttention(_Core):
    """The same by FlashAttentionScore."""

    def __init__(self, config: Glm3Config) -> None:
        super().__init__(config)
        self.kernel = _flash_attention(self.heads, self.scale, sparse_mode=0)

    def mask(
        self,
        positions: Tensor,
        head_positions: Tensor,  # noqa: ARG002  # both prefill cores are called alike
        context: Tensor,
    ) -> Tensor:
        """As the explicit core's, but `[T, C]`, and 1 where the kernel must not look."""
        hidden = context.expand_dims(0) > positions.expand_dims(1)
        return self.cast(hidden, ms.uint8)

    def construct(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Query `[H, T, D]`, keys and values `[G, C, D]`; returns `[H, T, D]`."""
        query, keys, values = query.expand_dims(0), keys.expand_dims(0), values.expand_dims(0)
        outputs = self.kernel(query, keys, values, None, None, None, mask)
        return outputs[3].reshape((self.heads, -1, self.channels))


class ExplicitTrainingAttention(_Core):
    """Causal attention of whole sequences."""

    def __init__(self, config: Glm3Config, *, dtype: Any, seq_length: int) -> None:
        super().__init__(config)
        self.seq_length = seq_length
        self.half = dtype in HALF
        future = np.triu(np.ones((seq_length, seq_length), np.float32), 1)
        self.mask = Tensor(future * MASKED)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query `[B, H, T, D]`, key and value `[B, G, T, D]`; returns `[B, H, T, D]`."""
        batch, length = query.shape[0], self.seq_length
        query = query.reshape((batch, self.groups, self.group_heads * length, self.channels))
        scores = self.batch_matmul_t(query * self.scale, key)
        scores = scores.reshape((batch, self.heads, length, length)) + self.mask
        # In two axes: on CPU, the sum in softmax's gradient costs five times as much in four.
        scores = self.softmax(scores.reshape((-1, length)))
        scores = scores.reshape((batch, self.groups, -1, length))
        if self.half:  # the float32 mask made them float32, in which softmax belongs
            scores = self.cast(scores, value.dtype)
        return self.batch_matmul(scores, value).reshape((batch, self.heads, length, self.channels))


class FusedTrainingAttention(_Core):
    """The same by FlashAttentionScore, which has a gradient kernel."""

    def __init__(self, config: Glm3Config, *, dtype: Any) -> None:
        super().__init__(config)
        self.kernel_dtype = dtype if dtype in HALF else ms.bfloat16
        self.mask = Tensor(np.triu(np.ones((COMPRESSED_MASK, COMPRESSED_MASK), np.uint8), 1))
        self.kernel = _flash_attention(self.heads, self.scale, sparse_mode=CAUSAL)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query `[B, H, T, D]`, key and value `[B, G, T, D]`; returns `[B, H, T, D]`."""
        outputs = self.kernel(
            self.cast(query, self.kernel_dtype),
            self.cast(key, self.kernel_dtype),
            self.cast(value, self.kernel_dtype),
            None,
            None,
            None,
            self.mask,
        )
        return self.cast(outputs[3], query.dtype)


def decode_attention(
    config: Glm3Config, profile: DeviceProfile, *, dtype: Any, length: int
) -> nn.Cell:
    """The core of a decode graph over caches of `length` positions."""
    if profile.fused_attention and dtype in HALF:
        return FusedDecodeAttention(config, length=length)
    return ExplicitDecodeAttention(config, length=length)


def prefill_attention(config: Glm3Config, profile: DeviceProfile, *, dtype: Any) -> nn.Cell:
    """The core of a prefill graph."""
    if profile.fused_attention and dtype in HALF:
        return FusedPrefillAttention(config)
    return ExplicitPrefillAttention(config)


def training_attention(config: Glm3Config, *, fused: bool, dtype: Any, seq_length: int) -> nn.Cell:
    """The core of the loss of sequences of `seq_length` tokens."""
    if fused:
        return FusedTrainingAttention(config, dtype=dtype)
    return ExplicitTrainingAttention(config, dtype=dtype, seq_length=seq_length)


def _flash_attention(heads: int, scale: float, *, sparse_mode: int) -> Any:
    """The kernel: query, key and value as `[B, heads, T, D]`; its fourth output is attention's."""
    return ops.auto_generate.FlashAttentionScore(
        head_num=heads, scale_value=scale, input_layout="BNSD", sparse_mode=sparse_mode
    )
