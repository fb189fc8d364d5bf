"""The SwiGLU feed-forward layer: `dense_4h_to_h(silu(x1) * x2)`."""

from __future__ import annotations

from mindspore import Tensor, nn, ops


class FeedForward(nn.Cell):
    """x1 and x2 are the two halves of dense_h_to_4h's output."""

    def __init__(self, dense_h_to_4h: nn.Cell, dense_4h_to_h: nn.Cell, *, fused: bool) -> None:
        super().__init__(auto_prefix=False)
        self.dense_h_to_4h = dense_h_to_4h
        self.dense_4h_to_h = dense_4h_to_h
        self.fused = fused
        self.kernel = ops.auto_generate.Swiglu()
        self.sigmoid = ops.Sigmoid()
        self.split = ops.Split(axis=-1, output_num=2)

    def construct(self, x: Tensor) -> Tensor:
        """Map `[N, hidden]` to `[N, hidden]`."""
        x = self.dense_h_to_4h(x)
        if self.fused:
            return self.dense_4h_to_h(self.kernel(x, -1))
        gate, up = self.split(x)
        # On CPU, silu as one operator costs four times these two.
        return self.dense_4h_to_h(gate * self.sigmoid(gate) * up)
