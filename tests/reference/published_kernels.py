"""Ascend's kernels as their documentation defines them, in operators that a CPU has.

Written from the docstrings of MindSpore 2.10 and CANN's operator pages, not from our cells:
RmsNorm, Swiglu, RotaryPositionEmbedding (mode 1), FlashAttentionScore, IncreFlashAttention.
As the kernels do, they compute in float32 and answer in the dtype that they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import pytest
from mindspore import Tensor, nn, ops


class RmsNorm(nn.Cell):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def construct(self, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        wide = ops.cast(x, ms.float32)
        rstd = ops.rsqrt(ops.square(wide).mean(-1, keep_dims=True) + self.epsilon)
        return ops.cast(wide * rstd * ops.cast(gamma, ms.float32), x.dtype), rstd


class Swiglu(nn.Cell):
    def construct(self, x: Tensor, dim: int) -> Tensor:
        a, b = ops.split(ops.cast(x, ms.float32), x.shape[dim] // 2, dim)
        return ops.cast(a * ops.sigmoid(a) * b, x.dtype)


class RotaryPositionEmbedding(nn.Cell):
    def construct(self, x: Tensor, cos: Tensor, sin: Tensor, mode: int) -> Tensor:
        if mode != 1:
            raise ValueError("only the interleaved mode is written here")
        wide = ops.cast(x, ms.float32)
        rotated = ops.stack((-wide[..., 1::2], wide[..., ::2]), -1).reshape(x.shape)
        turned = wide * ops.cast(cos, ms.float32) + rotated * ops.cast(sin, ms.float32)
        return ops.cast(turned, x.dtype)


class FlashAttentionScore(nn.Cell):
    def __init__(
        self, *, head_num: int, scale_value: float, input_layout: str, sparse_mode: int
    ) -> None:
        super().__init__()
        assert input_layout == "BNSD"
        assert sparse_mode in {0, 2}
        self.heads = head_num
        self.scale = scale_value
        self.compressed = sparse_mode == 2

    def construct(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        real_shift: None,
        drop_mask: None,
        padding_mask: None,
        attn_mask: Tensor,
    ) -> tuple[None, None, None, Tensor]:
        if self.compressed:
            # Causal from the upper left: row i sees columns 0..i, which is what this corner holds.
            attn_mask = attn_mask[: query.shape[2], : key.shape[2]]
        return None, None, None, _attend(query, key, value, attn_mask, self.heads, self.scale)


class IncreFlashAttention(nn.Cell):
    def __init__(
        self,
        *,
        num_heads: int,
        input_layout: str,
        scale_value: float,
        num_key_value_heads: int,
        inner_precise: int,
    ) -> None:
        super().__init__()
        assert input_layout == "BNSD"
        assert num_heads % num_key_value_heads == 0
        assert inner_precise in {0, 1}
        self.heads = num_heads
        self.scale = scale_value

    def construct(
        self, query: Tensor, key: list[Tensor], value: list[Tensor], attn_mask: Tensor
    ) -> Tensor:
        return _attend(query, key[0], value[0], attn_mask, self.heads, self.scale)


KERNELS = (RmsNorm, Swiglu, RotaryPositionEmbedding, FlashAttentionScore, IncreFlashAttention)


@contextmanager
def played_by_formulas() -> Iterator[pytest.MonkeyPatch]:
    """Cells that are built inside get the formulas where they ask for the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for kernel in KERNELS:
            patch.setattr(ops.auto_generate, kernel.__name__, kernel)
        yield patch


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int, scale: float
) -> Tensor:
    # Query head h reads key head h // (N1 / N2); a mask element that is set is discarded.
    shared = heads // key.shape[1]
    keys = ops.repeat_interleave(ops.cast(key, ms.float32), shared, 1)
    values = ops.repeat_interleave(ops.cast(value, ms.float32), shared, 1)
    scores = ops.matmul(ops.cast(query, ms.float32), keys.swapaxes(-1, -2)) * scale
    scores = scores.masked_fill(ops.cast(mask, ms.bool_), -1e9)
    return ops.cast(ops.matmul(ops.softmax(scores, -1), values), query.dtype)
