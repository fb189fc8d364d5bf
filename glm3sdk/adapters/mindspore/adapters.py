"""The Parameters of a LoRA adapter, and the cells that train it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from glm3sdk.adapters.mindspore.model.linear import Linear
from glm3sdk.adapters.mindspore.model.lora import Dropout, LoraLinear
from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.adapters.mindspore.ranks import Ranks
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.arrays import FloatArray


class Adapter:
    """A model's adapter: A uniform as a linear layer's usual start, B zero, both float32.

    Args:
        lora: shape and strength.
        config: of the whole model.
        seed: of the first values.
        ranks: those that share the model; each holds its share of the same adapter.

    Attributes:
        parameters: A and B of each adapted layer, under PEFT's names.
        dropout_seed: int32 Parameter `[]`; set it before each step.
    """

    def __init__(
        self, lora: Lora, config: Glm3Config, *, seed: int, ranks: Ranks | None = None
    ) -> None:
        self._lora = lora
        self._ranks = ranks
        self._shares = ranks.shares(lora) if ranks else None
        self.dropout_seed = Parameter(Tensor(0, ms.int32), name="dropout_seed", requires_grad=False)
        self._pairs: dict[str, tuple[Parameter, Parameter]] = {}
        for number, pair in enumerate(lora.pairs(config)):
            # Raw Philox words: a Generator's floats may change with numpy's version.
            words = np.random.Philox(key=np.array([seed, number], np.uint64))
            rank, columns = pair.shape_a
            uniform = words.random_raw(rank * columns).astype(np.float64) / 2**64
            start = ((2.0 * uniform - 1.0) / np.sqrt(columns)).astype(np.float32)
            self._pairs[pair.weight] = (
                self._parameter(pair.name_a, start.reshape(pair.shape_a)),
                self._parameter(pair.name_b, np.zeros(pair.shape_b, np.float32)),
            )
        self.parameters = [parameter for pair in self._pairs.values() for parameter in pair]

    def cells(
        self, config: Glm3Config, profile: DeviceProfile, base: Glm3Cells, *, dropout: bool
    ) -> Glm3Cells:
        """The base's cells again, over the same Parameters, with the adapter beside them.

        Args:
            config: what the base's cells compute.
            profile: whose kernels to use.
            base: the cells.
            dropout: whether inputs of the adapter are dropped.
        """
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
                drop = Dropout(
                    self._lora.dropout,
                    self.dropout_seed,
                    salt=7919 * layers,
                    first_column=self._first_column(linear.weight.name),
                )
            return LoraLinear(linear, *pair, scale=self._lora.scale, dropout=drop)

        tensor = self._ranks.tensor if self._ranks else None
        return Glm3Cells(config, profile, weights.__getitem__, adapt=adapt, ranks=tensor)

    def _parameter(self, name: str, whole: FloatArray) -> Parameter:
        if self._shares is not None and self._ranks is not None:
            share = self._shares.share(name, self._ranks.place)
            whole = np.concatenate([whole[region] for region in share.regions])
        return Parameter(Tensor(whole), name=name)

    def _first_column(self, weight: str) -> int:
        """The number of the first column of a layer's input that this rank has."""
        if self._shares is None or self._ranks is None:
            return 0
        columns = self._shares.share(weight, self._ranks.place).columns
        return columns[0] if columns else 0
