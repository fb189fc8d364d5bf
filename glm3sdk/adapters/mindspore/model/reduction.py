"""The graph that makes one gradient of those that the ranks accumulated, once a step."""

from __future__ import annotations

import attrs
import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.collectives import GatherRows, Group
from glm3sdk.adapters.mindspore.model.optimizer import OptimizerState
from glm3sdk.domain.tensor_shares import Rows


@attrs.frozen
class Reduction:
    """What is done to one gradient.

    Attributes:
        rows: of them each rank of `partial` has a part of the sum.
        partial: tensor ranks to sum these rows over; None for none.
        data: data ranks to sum all over; None for none.
        scatters: of the sum over `data`, this rank keeps its rows alone.
        weights: of what is kept, where a range of rows starts and stops, and what its squares
            count in the norm: 1 / n where n ranks have the same.
    """

    rows: Rows
    partial: Group | None
    data: Group | None
    scatters: bool
    weights: tuple[tuple[int, int, float], ...]


class ReduceGraph(nn.Cell):
    """Sums the accumulated gradients over ranks.

    Returns what every rank then knows of every other: its loss and its squares; so all of them
    see the same norm, and the same overflow.
    """

    def __init__(
        self, state: OptimizerState, reductions: tuple[Reduction, ...], every: Group
    ) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = ParameterTuple(state.gradients)
        self.summed = ParameterTuple(state.summed)
        self.partial = nn.CellList(
            [_sum(reduction.partial) for reduction in reductions], auto_prefix=False
        )
        self.data = nn.CellList(
            [
                _Scatter(reduction.data)
                if reduction.scatters and reduction.data
                else _sum(reduction.data)
                for reduction in reductions
            ],
            auto_prefix=False,
        )
        self.is_partial = tuple(reduction.partial is not None for reduction in reductions)
        self.is_shared = tuple(reduction.data is not None for reduction in reductions)
        self.rows = tuple(reduction.rows for reduction in reductions)
        self.weights = tuple(reduction.weights for reduction in reductions)
        self.gather = GatherRows(every)
        self.concat = ops.Concat(0)
        self.sum = ops.ReduceSum()
        self.square = ops.Square()

    def construct(self, loss: Tensor) -> Tensor:
        """This rank's loss `[]` to `[ranks x 2]`: each rank's loss and weighted squares."""
        squares = Tensor(0.0, ms.float32)
        previous = loss
        for index, gradient in enumerate(self.gradients):
            total = gradient
            if self.is_partial[index]:
                # Nothing else would make all ranks sum in the same order.
                start, stop = self.rows[index]
                part = ops.depend(self._rows(total, start, stop), previous)
                previous = self.partial[index](part)
                total = self._replaced(total, previous, start, stop)
            if self.is_shared[index]:
                previous = self.data[index](ops.depend(total, previous))
                total = previous
            ops.assign(self.summed[index], total)
            for start, stop, weight in self.weights[index]:
                square = self.square(self._rows(total, start, stop))
                # On CPU, a sum over both axes at once costs seven times a sum by rows.
                squares = squares + self.sum(self.sum(square, -1)) * weight
        both = ops.stack((loss, squares)).expand_dims(0)
        return self.gather(ops.depend(both, previous))

    def _rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        if stop - start == x.shape[0]:
            return x
        begin = (start,) + (0,) * (len(x.shape) - 1)
        return ops.slice(x, begin, (stop - start, *x.shape[1:]))

    def _replaced(self, x: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """X with other rows; they end where x does, or are all of it."""
        if stop - start == x.shape[0]:
            return rows
        return self.concat((self._rows(x, 0, start), rows))


class _Sum(nn.Cell):
    """AllReduce."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce(group=group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)


class _Scatter(nn.Cell):
    """ReduceScatter, where a device has it: the sum's rows of this rank."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.reduce_scatter = ops.ReduceScatter(group=group.name)
        # MindSpore asks its cluster for the size, and an export has none.
        self.reduce_scatter.rank_size = group.size
        self.reduce_scatter.add_prim_attr("rank_size", group.size)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce_scatter(x)


def _sum(group: Group | None) -> nn.Cell:
    return nn.Identity() if group is None else _Sum(group)
