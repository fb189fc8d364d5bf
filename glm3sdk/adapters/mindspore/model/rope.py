"""Rotary position embedding on the first half of each head, interleaved pairs.

Pairs (2i, 2i+1) of the first kv_channels/2 channels turn by position / base^(4i/D); the
other half passes through (Su et al. 2021; the half is ChatGLM2's choice).
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray


def rope_tables(config: Glm3Config, length: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines `[length, kv_channels]`: 1 and 0 on the half that passes through."""
    channels = config.kv_channels
    turned = channels // 2
    frequencies = 1.0 / config.rope_base ** (np.arange(0, turned, 2, dtype=np.float64) / turned)
    angles = np.repeat(np.outer(np.arange(length), frequencies), 2, axis=1)
    cos = np.ones((length, channels))
    sin = np.zeros((length, channels))
    cos[:, :turned] = np.cos(angles)
    sin[:, :turned] = np.sin(angles)
    return cos.astype(np.float32), sin.astype(np.float32)


def pair_swap(config: Glm3Config) -> FloatArray:
    """The matrix R `[D, D]` for which `x @ R` is `(-x1, x0, -x3, x2, ...)` where rope turns."""
    swap = np.zeros((config.kv_channels, config.kv_channels), dtype=np.float32)
    for even in range(0, config.kv_channels // 2, 2):
        swap[even + 1, even] = -1.0
        swap[even, even + 1] = 1.0
    return swap


INTERLEAVED = 1  # the kernel's mode of pairs (2i, 2i+1)


class Rope(nn.Cell):
    """Turns query and key heads together: `x * cos + (x @ R) * sin`."""

    def __init__(self, config: Glm3Config, *, dtype: object, fused: bool) -> None:
        super().__init__(auto_prefix=False)
        self.fused = fused
        self.channels = config.kv_channels
        self.swap = Tensor(pair_swap(config)).astype(dtype)
        self.matmul = ops.MatMul()
        self.kernel = ops.auto_generate.RotaryPositionEmbedding()

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn x `[N, heads, D]` by cos and sin `[N, 1, D]`."""
        if self.fused:
            # The kernel reads [1, N, heads, D] with tables [1, N, 1, D]: N is its sequence, so
            # that each row has its own position. Cosine 1 and sine 0 pass a channel through.
            x, cos, sin = x.expand_dims(0), cos.expand_dims(0), sin.expand_dims(0)
            return self.kernel(x, cos, sin, INTERLEAVED).squeeze(0)
        swapped = self.matmul(x.reshape((-1, self.channels)), self.swap).reshape(x.shape)
        return x * cos + swapped * sin
