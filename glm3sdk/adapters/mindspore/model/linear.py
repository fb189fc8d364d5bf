"""A linear layer that keeps the weight as Hugging Face stores it, `[out, in]`."""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops


class Linear(nn.Cell):
    """`x @ weight.T + bias`, x `[N, in]`."""

    def __init__(self, weight: Parameter, bias: Parameter | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight
        self.bias = bias
        self.has_bias = bias is not None
        self.matmul = ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()

    def construct(self, x: Tensor) -> Tensor:
        """Return `[N, out]`."""
        x = self.matmul(x, self.weight)
        if self.has_bias:
            x = self.bias_add(x, self.bias)
        return x
