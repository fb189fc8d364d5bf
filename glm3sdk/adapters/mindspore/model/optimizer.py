"""The graphs of a training step: gradients, and AdamW on what they accumulated."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm3sdk.adapters.mindspore.model.loss import CausalLoss
from glm3sdk.ports.training import AdamW


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return not ("layernorm" in name or name.endswith(".bias"))


class OptimizerState:
    """Trained Parameters with their gradients and moments, float32.

    Attributes:
        parameters: what is trained.
        masters: float32 copies of those that are of a smaller dtype; else themselves.
        gradients: the accumulated gradients.
        first: AdamW's first moments.
        second: AdamW's second moments.
        beta1_power: beta1 to the power of the steps taken, `[]`.
        beta2_power: the same of beta2.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        self.parameters = parameters
        self.masters = [_master(parameter) for parameter in parameters]
        self.gradients = _beside(parameters, "gradient")
        self.first = _beside(parameters, "first_moment")
        self.second = _beside(parameters, "second_moment")
        one = Tensor(1.0, ms.float32)
        self.beta1_power = Parameter(one, name="beta1_power", requires_grad=False)
        self.beta2_power = Parameter(one, name="beta2_power", requires_grad=False)

    @property
    def saved(self) -> list[Parameter]:
        """What a checkpoint must hold beside the trained Parameters."""
        copies = [
            master
            for master, parameter in zip(self.masters, self.parameters, strict=True)
            if master is not parameter
        ]
        return [*copies, *self.first, *self.second, self.beta1_power, self.beta2_power]


def _master(parameter: Parameter) -> Parameter:
    if parameter.dtype == ms.float32:
        return parameter
    return Parameter(
        Tensor(parameter).astype(ms.float32), name=f"master.{parameter.name}", requires_grad=False
    )


def _beside(parameters: list[Parameter], kind: str) -> list[Parameter]:
    """A float32 zero Parameter beside each of `parameters`."""
    return [
        Parameter(
            ops.zeros(parameter.shape, ms.float32),
            name=f"{kind}.{parameter.name}",
            requires_grad=False,
        )
        for parameter in parameters
    ]


class GradientGraph(nn.Cell):
    """Adds a micro-batch's gradients to the accumulated ones, or starts anew."""

    def __init__(self, loss: CausalLoss, state: OptimizerState, *, accumulate: bool) -> None:
        super().__init__(auto_prefix=False)
        self.accumulate = accumulate
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
            squares = squares + self._squares(total)
        return ops.stack((loss, ops.sqrt(squares)))

    def _squares(self, x: Tensor) -> Tensor:
        # On CPU, a sum over both axes at once costs seven times a sum by rows.
        return self.sum(self.sum(self.square(x), -1))


class ApplyGraph(nn.Cell):
    """Clips the accumulated gradients and applies AdamW with bias correction.

    MindSpore's fused Adam is given `epsilon * sqrt(1 - beta2^t)`, for it adds epsilon before
    the correction that the published formula makes first.
    """

    def __init__(self, state: OptimizerState, optimizer: AdamW) -> None:
        super().__init__(auto_prefix=False)
        self.trained = ParameterTuple(state.parameters)
        self.masters = ParameterTuple(state.masters)
        self.copied = tuple(
            master is not parameter
            for master, parameter in zip(state.masters, state.parameters, strict=True)
        )
        self.gradients = ParameterTuple(state.gradients)
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
                self.gradients[index] * scale,
            )
            if self.copied[index]:
                ops.assign(self.trained[index], self.cast(master, self.trained[index].dtype))
        ops.assign(self.beta1_power, beta1_power)
        ops.assign(self.beta2_power, beta2_power)
        return norm
