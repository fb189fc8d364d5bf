"""RMSNorm (Zhang and Sennrich 2019), computed in float32."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class RmsNorm(nn.Cell):
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last axis."""

    def __init__(self, weight: Parameter, *, epsilon: float, fused: bool) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight
        self.epsilon = epsilon
        self.fused = fused
        self.cast_needed = weight.dtype != ms.float32
        self.kernel = ops.auto_generate.RmsNorm(epsilon)
        # On CPU, ReduceMean costs eight times what ReduceSum does.
        self.sum = ops.ReduceSum(keep_dims=True)
        self.share = 1.0 / weight.shape[0]
        self.square = ops.Square()
        self.rsqrt = ops.Rsqrt()
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        """Normalise x `[N, hidden]`."""
        if self.fused:
            return self.kernel(x, self.weight)[0]
        if self.cast_needed:
            wide = self.cast(x, ms.float32)
            return self.cast(wide * self._scale(wide), x.dtype) * self.weight
        return x * self._scale(x) * self.weight

    def _scale(self, x: Tensor) -> Tensor:
        return self.rsqrt(self.sum(self.square(x), -1) * self.share + self.epsilon)
