"""Collectives as cells, each with its own backward pass.

Only AllReduce (sum) and AllGather are used, which a CPU has too; what only Ascend does better is
chosen by the profile. Within every pass of a layer each collective waits for the one before it,
by its data: so all ranks meet in the same order.
"""

from __future__ import annotations

import attrs
import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


@attrs.frozen
class Group:
    """Ranks that a collective runs over.

    Attributes:
        name: MindSpore's name for them.
        size: how many.
        index: this rank's number among them.
        gathers: AllGather runs over them; else it is made of AllReduce.
    """

    name: str
    size: int
    index: int
    gathers: bool = True


class CopyToRanks(nn.Cell):
    """What every rank of the group has alike: itself, and backward the sum of all gradients."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce(group=group.name)

    def construct(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def bprop(
        self,
        x: Tensor,  # noqa: ARG002  # MindSpore hands both to every bprop
        out: Tensor,  # noqa: ARG002
        dout: Tensor,
    ) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.all_reduce(dout),)


class SumOverRanks(nn.Cell):
    """The sum of what the ranks have; backward each takes the gradient as it is."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce(group=group.name)

    def construct(self, x: Tensor) -> Tensor:
        """Return the sum, of the shape of x."""
        return self.all_reduce(x)

    def bprop(
        self,
        x: Tensor,  # noqa: ARG002  # MindSpore hands both to every bprop
        out: Tensor,  # noqa: ARG002
        dout: Tensor,
    ) -> tuple[Tensor]:
        """The gradient of x."""
        return (dout,)


class GatherRows(nn.Cell):
    """The ranks' tensors one after the other; it has no backward pass."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.gathers = group.gathers
        self.before = group.index
        self.after = group.size - 1 - group.index
        if self.gathers:
            self.all_gather = ops.AllGather(group=group.name)
            # MindSpore asks its cluster for the size, and an export has none.
            self.all_gather.rank_size = group.size
            self.all_gather.add_prim_attr("rank_size", group.size)
        else:
            self.all_reduce = ops.AllReduce(group=group.name)
        self.concat = ops.Concat(0)

    def construct(self, x: Tensor) -> Tensor:
        """X `[N, ...]` of each rank to `[size x N, ...]`."""
        if self.gathers:
            return self.all_gather(x)
        nothing = ops.zeros_like(x)
        placed = (nothing,) * self.before + (x,) + (nothing,) * self.after
        return self.all_reduce(self.concat(placed))


class GatherColumns(nn.Cell):
    """The ranks' matrices side by side; it has no backward pass."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.size = group.size
        self.gather = GatherRows(group)
        self.transpose = ops.Transpose()

    def construct(self, x: Tensor) -> Tensor:
        """X `[N, C]` of each rank to `[N, size x C]`."""
        columns = x.shape[1]
        by_rank = self.gather(x).reshape((self.size, -1, columns))
        return self.transpose(by_rank, (1, 0, 2)).reshape((-1, self.size * columns))


class ColumnParallel(nn.Cell):
    """A linear layer of which this rank has some outputs, on an input that all ranks have."""

    def __init__(self, linear: nn.Cell, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.linear = linear
        self.copy = CopyToRanks(group)

    def construct(self, x: Tensor) -> Tensor:
        """X `[N, in]` to `[N, out / size]`."""
        return self.linear(self.copy(x))


class RowParallel(nn.Cell):
    """A linear layer of which this rank has some inputs; all ranks get all outputs."""

    def __init__(self, linear: nn.Cell, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.linear = linear
        self.sum = SumOverRanks(group)

    def construct(self, x: Tensor) -> Tensor:
        """X `[N, in / size]` to `[N, out]`."""
        return self.sum(self.linear(x))


class SplitVocabulary(nn.Cell):
    """Where ids of the whole vocabulary stand among this rank's rows of it."""

    def __init__(self, rows: int, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.rows = rows
        self.first = rows * group.index
        self.logical_and = ops.LogicalAnd()
        self.cast = ops.Cast()

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids `[N]` to rows `[N]`, 0 for those of other ranks, and which are here, `[N]`."""
        rows = ids - self.first
        here = self.logical_and(rows >= 0, rows < self.rows)
        return rows * self.cast(here, rows.dtype), here


class SplitEmbedding(nn.Cell):
    """The embedding, of which this rank has some rows."""

    def __init__(self, weight: Parameter, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight
        self.vocabulary = SplitVocabulary(weight.shape[0], group)
        self.sum = SumOverRanks(group)
        self.gather = ops.Gather()
        self.cast = ops.Cast()

    def construct(self, input_ids: Tensor) -> Tensor:
        """input_ids `[N]` to `[N, hidden]`."""
        rows, here = self.vocabulary(input_ids)
        x = self.gather(self.weight, rows, 0)
        return self.sum(x * self.cast(here, x.dtype).expand_dims(1))


class SplitCrossEntropy(nn.Cell):
    """`CrossEntropy` of logits of which this rank has some columns.

    Each rank gives its greatest logit, the sum of its exponentials and the label's logit, if it
    has it; one AllGather brings them together, and each rank computes the same loss.
    """

    def __init__(self, group: Group, *, columns: int) -> None:
        super().__init__(auto_prefix=False)
        self.size = group.size
        self.vocabulary = SplitVocabulary(columns, group)
        self.gather = GatherRows(group)
        self.gather_label = ops.GatherD()
        self.maximum = ops.ReduceMax()
        self.sum = ops.ReduceSum()
        self.exp = ops.Exp()
        self.log = ops.Log()
        self.one_hot = ops.OneHot()
        self.cast = ops.Cast()
        self.one = Tensor(1.0, ms.float32)
        self.zero = Tensor(0.0, ms.float32)

    def construct(self, logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the labels' negative log-likelihoods.

        Args:
            logits: `[N, V / size]`, float32.
            labels: `[N]`, all in the vocabulary.
            weights: `[N]`.

        Returns:
            The weighted sum `[]`, and the logarithms of the whole rows' sums of exponentials
            `[N]`, for the backward pass.
        """
        rows, here = self.vocabulary(labels)
        top = self.maximum(logits, 1)
        total = self.sum(self.exp(logits - top.expand_dims(1)), 1)
        chosen = self.gather_label(logits, 1, rows.expand_dims(1)).reshape((-1,))
        chosen = chosen * self.cast(here, ms.float32)
        every = self.gather(ops.stack((top, total, chosen)))
        by_rank = every.reshape((self.size, 3, -1))
        tops, totals, choices = by_rank[:, 0], by_rank[:, 1], by_rank[:, 2]
        top = self.maximum(tops, 0)
        logsumexp = top + self.log(self.sum(totals * self.exp(tops - top), 0))
        return ((logsumexp - self.sum(choices, 0)) * weights).sum(), logsumexp

    def bprop(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        out: tuple[Tensor, Tensor],
        dout: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of this rank's logits; none is asked of labels and weights."""
        rows, here = self.vocabulary(labels)
        weighted = weights * dout[0]
        softmax = self.exp(logits - out[1].expand_dims(1))
        one_hot = self.one_hot(rows, logits.shape[1], self.one, self.zero)
        chosen = weighted * self.cast(here, ms.float32)
        gradient = softmax * weighted.expand_dims(1) - one_hot * chosen.expand_dims(1)
        return gradient, ops.zeros_like(labels), ops.zeros_like(weights)
