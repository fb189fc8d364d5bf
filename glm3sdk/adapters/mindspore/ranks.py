"""The other ranks of a job, as MindSpore's groups; everything here runs on the executor."""

from __future__ import annotations

from collections.abc import Callable

from glm3sdk.adapters.mindspore.model.collectives import Group
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import Place
from glm3sdk.domain.tensor_shares import TensorShares

NameGroup = Callable[[tuple[int, ...]], str]
"""Gives MindSpore's name of a group of ranks, made where it is new."""


class Ranks:
    """This rank's place in a job of several, its groups, and its share of every tensor.

    Args:
        config: of the whole model; it can be shared out as the plan says.
        place: this rank's.
        profile: the device, for the collectives that it has.
        name_group: makes groups.

    Attributes:
        config: of the whole model.
        local: the model that this rank computes.
        place: this rank's.
        tensor: the ranks that share each layer; None for this one alone.
        data: the ranks that train on other data; None for this one alone.
        every: all ranks.
        scatters: ReduceScatter may be used.
    """

    def __init__(
        self, config: Glm3Config, place: Place, profile: DeviceProfile, name_group: NameGroup
    ) -> None:
        self.config = config
        self.local = place.local_config(config)
        self.place = place
        self.scatters = profile.reduce_scatter
        self._gathers_in_groups = profile.gathers_in_groups
        self._name_group = name_group
        self._groups: dict[tuple[int, ...], Group] = {}
        # In this order on every rank: making a group waits for its members.
        self.tensor = self.group(place.tensor_ranks)
        self.data = self.group(place.data_ranks)
        self.group(place.group_ranks(config))
        every = self.group(place.every_rank)
        assert every is not None  # noqa: S101  # a rank alone has no Ranks
        self.every = every

    def group(self, ranks: tuple[int, ...]) -> Group | None:
        """The group of these ranks, this one among them; None for this one alone."""
        if len(ranks) == 1:
            return None
        if ranks not in self._groups:
            self._groups[ranks] = Group(
                self._name_group(ranks),
                len(ranks),
                ranks.index(self.place.rank_id),
                gathers=self._gathers_in_groups or ranks == self.place.every_rank,
            )
        return self._groups[ranks]

    def shares(self, lora: Lora | None = None) -> TensorShares:
        """Which part of each tensor, and of an adapter's, each rank has."""
        return TensorShares(config=self.config, plan=self.place.plan, lora=lora)
