"""The Parameters of a LoRA adapter, and the cells that train it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from glm3sdk.adapters.mindspore.model.linear import Linear
from glm3sdk.adapters.mindspore.model.lora import Dropout, LoraLinear
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config


class Adapter:
    """A model's adapter: A uniform as a linear layer's usual start, B zero, both float32.

    Attributes:
        parameters: A and B of each adapted layer, under PEFT's names.
        dropout_seed: int32 Parameter `[]`; set it before each step.
    """

    def __init__(self, lora: Lora, config: Glm3Config, *, seed: int) -> None:
        self._lora = lora
        self.dropout_seed = Parameter(Tensor(0, ms.int32), name="dropout_seed", requires_grad=False)
        self._pairs: dict[str, tuple[Parameter, Parameter]] = {}
        for number, pair in enumerate(lora.pairs(config)):
            # Raw Philox words: a Generator's floats may change with numpy's version.
            words = np.random.Philox(key=np.array([seed, number], np.uint64))
            rank, columns = pair.shape_a
            uniform = words.random_raw(rank * columns).astype(np.float64) / 2**64
            start = ((2.0 * uniform - 1.0) / np.sqrt(columns)).astype(np.float32)
            self._pairs[pair.weight] = (
                Parameter(Tensor(start.reshape(pair.shape_a)), name=pair.name_a),
                Parameter(Tensor(np.zeros(pair.shape_b, np.float32)), name=pair.name_b),
            )
        self.parameters = [parameter for pair in self._pairs.values() for parameter in pair]

    def cells(
        self, config: Glm3Config, profile: DeviceProfile, base: Glm3Cells, *, dropout: bool
    ) -> Glm3Cells:
        """The base's cells again, over the same Parameters, with the adapter beside them."""
        weights = {parameter.name: parameter for parameter in base.get_parameters()}
        layers = 0

        def adapt(linear: Linear) -> nn.Cell:
            nonlocal layers
            pair = self._pairs.get(linear.weight.name)
            if pair is None:
                return linear
            layers += 1
            drop = None
            if dropout and self._lora.dropout:
                drop = Dropout(self._lora.dropout, self.dropout_seed, salt=7919 * layers)
            return LoraLinear(linear, *pair, scale=self._lora.scale, dropout=drop)

        return Glm3Cells(config, profile, weights.__getitem__, adapt=adapt)
