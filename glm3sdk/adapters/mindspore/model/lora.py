"""A frozen linear layer with a trained low-rank adapter beside it."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.linear import Linear


class Dropout(nn.Cell):
    """Drops a share of its inputs, decided by a seed alone: the same seed drops the same.

    A framework's dropout keeps a generator of its own, which cannot be put back where it
    was when a run resumes. Here rows and columns are numbered and hashed with the seed (the
    finaliser of MurmurHash3), and an element is dropped where the product of its row's and
    its column's hash, as a signed integer, is small: one product an element.

    Args:
        rate: share that is dropped.
        seed: int32 Parameter `[]`, set before each step.
        salt: tells this layer's drops from another's.
        first_column: number of the first column, where this rank has some of them.
    """

    def __init__(self, rate: float, seed: Parameter, salt: int, first_column: int = 0) -> None:
        super().__init__(auto_prefix=False)
        self.seed = seed
        self.salt = salt
        self.column_salt = salt + 1 + first_column
        self.threshold = int(rate * 2**32) - 2**31
        self.scale = 1.0 / (1.0 - rate)
        self.xor = ops.BitwiseXor()
        self.and_ = ops.BitwiseAnd()
        self.or_ = ops.BitwiseOr()
        self.right_shift = ops.RightShift()

    def construct(self, x: Tensor) -> Tensor:
        """Drop elements of x `[N, in]` and scale the others up."""
        rows = self._hash(x.shape[0], self.salt)
        # An odd factor loses none of the other's bits.
        columns = self.or_(self._hash(x.shape[1], self.column_salt), Tensor(1, ms.int32))
        kept = rows.expand_dims(1) * columns.expand_dims(0) >= self.threshold
        return x * kept.astype(x.dtype) * self.scale

    def _hash(self, count: int, salt: int) -> Tensor:
        bits = self._mix(ops.range(0, count, 1).astype(ms.int32) + salt)
        return self._mix(bits + self.seed)

    def _mix(self, bits: Tensor) -> Tensor:
        bits = self.xor(bits, self._shift(bits, 16))
        bits = bits * -2048144789
        bits = self.xor(bits, self._shift(bits, 13))
        bits = bits * -1028477387
        return self.xor(bits, self._shift(bits, 16))

    def _shift(self, bits: Tensor, places: int) -> Tensor:
        # The shift is arithmetic; the mask makes it logical.
        shifted = self.right_shift(bits, Tensor(places, ms.int32))
        return self.and_(shifted, Tensor((1 << (32 - places)) - 1, ms.int32))


class LoraLinear(nn.Cell):
    """`linear(x) + scale * dropout(x) @ A.T @ B.T`, A `[r, in]`, B `[out, r]`."""

    def __init__(
        self, linear: Linear, a: Parameter, b: Parameter, *, scale: float, dropout: Dropout | None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.linear = linear
        self.weight = linear.weight
        self.a = a
        self.b = b
        self.scale = scale
        self.has_dropout = dropout is not None
        if dropout is not None:
            self.dropout = dropout
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        """Map `[N, in]` to `[N, out]`."""
        dropped = self.dropout(x) if self.has_dropout else x
        low = self.matmul(dropped, self.a.astype(x.dtype))
        return self.linear(x) + self.matmul(low, self.b.astype(x.dtype)) * self.scale
