"""The graphs of a training step: gradients, and AdamW on what they accumulated."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.collectives import GatherRows, Group
from glm3sdk.adapters.mindspore.model.loss import CausalLoss
from glm3sdk.domain.tensor_shares import FIRST_MOMENT, MASTER, SECOND_MOMENT, Rows
from glm3sdk.ports.training import AdamW


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return not ("layernorm" in name or name.endswith(".bias"))


class OptimizerState:
    """Trained Parameters with their gradients and moments, float32.

    Args:
        parameters: what is trained.
        shards: for each the rows that this rank updates, where the optimizer's state is shared
            out, or None for all.
        scatters: for each whether its summed gradient comes as these rows alone.

    Attributes:
        parameters: what is trained.
        shards: see above.
        masters: float32 copies of the rows of those that are of a smaller dtype, or that this
            rank updates a shard of; else themselves.
        gradients: the accumulated gradients.
        summed: where a gradient is when it is summed over ranks: itself, or rows of it.
        first: AdamW's first moments.
        second: AdamW's second moments.
        beta1_power: beta1 to the power of the steps taken, `[]`.
        beta2_power: the same of beta2.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        shards: Sequence[Rows | None] | None = None,
        scatters: Sequence[bool] | None = None,
    ) -> None:
        self.parameters = parameters
        self.shards = shards or [None] * len(parameters)
        pairs = list(zip(parameters, self.shards, strict=True))
        self.masters = [_master(parameter, rows) for parameter, rows in pairs]
        self.gradients = [_beside(parameter, None, "gradient.") for parameter in parameters]
        self.summed = [
            _beside(*pair, "summed_gradient.") if scattered else gradient
            for pair, gradient, scattered in zip(
                pairs, self.gradients, scatters or [False] * len(pairs), strict=True
            )
        ]
        self.first = [_beside(*pair, FIRST_MOMENT) for pair in pairs]
        self.second = [_beside(*pair, SECOND_MOMENT) for pair in pairs]
        one = Tensor(1.0, ms.float32)
        self.beta1_power = Parameter(one, name="beta1_power", requires_grad=False)
        self.beta2_power = Parameter(one, name="beta2_power", requires_grad=False)

    @property
    def saved(self) -> list[Parameter]:
        """What a checkpoint must hold beside the trained Parameters."""
        copies = [
            master
            for master, parameter in zip(self.masters, self.parameters, strict=True)
            if parameter.dtype != ms.float32
        ]
        return [*copies, *self.first, *self.second, self.beta1_power, self.beta2_power]

    def renew_masters(self) -> None:
        """Take float32 shards again from the Parameters, which were set."""
        for parameter, master, rows in zip(self.parameters, self.masters, self.shards, strict=True):
            if rows is not None and parameter.dtype == ms.float32:
                master.set_data(Tensor(parameter.asnumpy()[slice(*rows)].copy()))


def _master(parameter: Parameter, rows: Rows | None) -> Parameter:
    if parameter.dtype == ms.float32 and rows is None:
        return parameter
    # A graph's Parameter may be written in place: a copy must not share its memory.
    values = Tensor(parameter).astype(ms.float32)
    if rows is not None:
        values = Tensor(values.asnumpy()[slice(*rows)].copy())
    return Parameter(values, name=f"{MASTER}{parameter.name}", requires_grad=False)


def _beside(parameter: Parameter, rows: Rows | None, kind: str) -> Parameter:
    """A float32 zero Parameter beside a Parameter, or rows of it."""
    length = (rows[1] - rows[0],) if rows else parameter.shape[:1]
    return Parameter(
        ops.zeros((*length, *parameter.shape[1:]), ms.float32),
        name=f"{kind}{parameter.name}",
        requires_grad=False,
    )


class GradientGraph(nn.Cell):
    """Adds a micro-batch's gradients to the accumulated ones, or starts anew.

    Args:
        loss: of a micro-batch.
        state: holds the accumulated gradients.
        accumulate: add to them.
        measure: give their norm; where ranks each have a part, it is known later.
    """

    def __init__(
        self, loss: CausalLoss, state: OptimizerState, *, accumulate: bool, measure: bool = True
    ) -> None:
        super().__init__(auto_prefix=False)
        self.accumulate = accumulate
        self.measure = measure
        self.gradients = ParameterTuple(state.gradients)
        self.loss_and_gradients = ms.value_and_grad(
            loss, grad_position=None, weights=ParameterTuple(state.parameters)
        )
        self.sum = ops.ReduceSum()
        self.square = ops.Square()
        self.cast = ops.Cast()

    def construct(self, input_ids: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Return `[2]`: this micro-batch's weighted loss and the accumulated gradient's norm.

        Args:
            input_ids: `[B, T]`.
            labels: `[B, T]`, already shifted.
            weight: of the loss, `[]`; the loss scale is part of it.
        """
        loss, gradients = self.loss_and_gradients(input_ids, labels, weight)
        squares = Tensor(0.0, ms.float32)
        for index, gradient in enumerate(gradients):
            total = self.cast(gradient, ms.float32)
            if self.accumulate:
                total = self.gradients[index] + total
            ops.assign(self.gradients[index], total)
            if self.measure:
                # On CPU, a sum over both axes at once costs seven times a sum by rows.
                squares = squares + self.sum(self.sum(self.square(total), -1))
        return ops.stack((loss, ops.sqrt(squares)))


class ApplyGraph(nn.Cell):
    """Clips the accumulated gradients and applies AdamW with bias correction.

    MindSpore's fused Adam is given `epsilon * sqrt(1 - beta2^t)`, for it adds epsilon before
    the correction that the published formula makes first.

    Args:
        state: what is updated.
        optimizer: AdamW's constants.
        gathers: for each Parameter of which this rank updates a shard, the ranks that update the
            others.
    """

    def __init__(
        self,
        state: OptimizerState,
        optimizer: AdamW,
        gathers: Sequence[Group | None] | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.trained = ParameterTuple(state.parameters)
        self.masters = ParameterTuple(state.masters)
        self.copied = tuple(
            master is not parameter
            for master, parameter in zip(state.masters, state.parameters, strict=True)
        )
        self.gradients = ParameterTuple(state.summed)
        # The rows to take of a gradient that is there as a whole: where, and how many.
        self.rows = tuple(
            (rows[0], rows[1] - rows[0]) if rows and summed is gradient else (0, 0)
            for rows, summed, gradient in zip(
                state.shards, state.summed, state.gradients, strict=True
            )
        )
        self.cut = tuple(length > 0 for _, length in self.rows)
        groups = gathers or [None] * len(state.parameters)
        self.shared = tuple(group is not None for group in groups)
        self.gathers = nn.CellList(
            [nn.Identity() if group is None else GatherRows(group) for group in groups],
            auto_prefix=False,
        )
        self.first = ParameterTuple(state.first)
        self.second = ParameterTuple(state.second)
        self.beta1_power = state.beta1_power
        self.beta2_power = state.beta2_power
        self.beta1 = optimizer.beta1
        self.beta2 = optimizer.beta2
        self.epsilon = optimizer.epsilon
        self.clip_norm = optimizer.clip_norm or 0.0
        self.decay = tuple(
            optimizer.weight_decay if decays(parameter.name) else 0.0
            for parameter in state.parameters
        )
        self.adam = ops.Adam()
        self.cast = ops.Cast()

    def construct(self, norm: Tensor, learning_rate: Tensor, loss_scale: Tensor) -> Tensor:
        """Update every trained Parameter.

        Args:
            norm: the true gradient's, `[]`.
            learning_rate: `[]`.
            loss_scale: what the accumulated gradients are too large by, `[]`.
        """
        scale = 1.0 / loss_scale
        if self.clip_norm:
            scale = scale * ops.minimum(self.clip_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
        previous = norm
        beta1_power = self.beta1_power * self.beta1
        beta2_power = self.beta2_power * self.beta2
        epsilon = self.epsilon * ops.sqrt(1.0 - beta2_power)
        for index, master in enumerate(self.masters):
            if self.decay[index]:
                ops.assign(master, master * (1.0 - learning_rate * self.decay[index]))
            self.adam(
                master,
                self.first[index],
                self.second[index],
                beta1_power,
                beta2_power,
                learning_rate,
                self.beta1,
                self.beta2,
                epsilon,
                self._gradient(index) * scale,
            )
            if self.shared[index]:
                updated = self.cast(master, self.trained[index].dtype)
                # Nothing else would make all ranks gather in the same order.
                previous = self.gathers[index](ops.depend(updated, previous))
                ops.assign(self.trained[index], previous)
            elif self.copied[index]:
                ops.assign(self.trained[index], self.cast(master, self.trained[index].dtype))
        ops.assign(self.beta1_power, beta1_power)
        ops.assign(self.beta2_power, beta2_power)
        return norm

    def _gradient(self, index: int) -> Tensor:
        gradient = self.gradients[index]
        if self.cut[index]:
            start, length = self.rows[index]
            begin = (start,) + (0,) * (len(gradient.shape) - 1)
            gradient = ops.slice(gradient, begin, (length, *gradient.shape[1:]))
        return gradient
