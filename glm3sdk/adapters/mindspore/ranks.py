"""The other ranks of a job, as MindSpore's groups; everything here runs on the executor."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank

from glm3sdk.adapters.mindspore.model.collectives import Group
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import Place
from glm3sdk.domain.tensor_shares import TensorShares
from glm3sdk.errors import InvalidPlacementError
from glm3sdk.ports.arrays import FloatArray

NameGroup = Callable[[tuple[int, ...]], str]
"""Gives MindSpore's name of a group of ranks."""


def check_entered(place: Place) -> None:
    """Check that MindSpore counts this process as the plan does.

    Raises:
        InvalidPlacementError: it does not, or no job was entered.
    """
    if not GlobalComm.INITED:
        raise InvalidPlacementError(
            f"the plan is for {place.plan.ranks} ranks and this process has entered no job; start "
            "it with `glm3 launch`, and initialize the topology before a model is loaded"
        )
    found = get_rank(), get_group_size()
    if found != (place.rank_id, place.plan.ranks):
        raise InvalidPlacementError(
            f"this process is rank {found[0]} of {found[1]} and the plan takes it for rank "
            f"{place.rank_id} of {place.plan.ranks}; launch as many ranks as the plan has"
        )


# A group stays until the process ends, and cannot be made twice.
@functools.cache
def entered_group(ranks: tuple[int, ...]) -> str:
    """The name of a group in the job; it is made where it is new, which waits for its members."""
    if len(ranks) == get_group_size():
        return str(GlobalComm.WORLD_COMM_GROUP)
    name = plain_group(ranks)
    create_group(name, list(ranks))
    return name


def plain_group(ranks: tuple[int, ...]) -> str:
    """A name that is the same on every member, for ranks at equal distances."""
    return f"glm3sdk-{ranks[0]}-{ranks[1] - ranks[0]}-{len(ranks)}"


class Ranks:
    """This rank's place in a job of several, its groups, and its share of every tensor.

    Args:
        config: of the whole model; it can be shared out as the plan says.
        place: this rank's.
        profile: the device, for the collectives that it has.
        name_group: names groups; only those of an entered job can be run.

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
        self,
        config: Glm3Config,
        place: Place,
        profile: DeviceProfile,
        name_group: NameGroup = entered_group,
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

    def exchanged(self, shares: TensorShares, name: str, held: FloatArray) -> FloatArray:
        """All of a tensor of which this rank holds a share; every rank calls this alike."""
        whole = np.zeros(shares.full_shape(name), np.float32)
        for (start, stop), (first, last) in shares.contributes(name, self.place):
            whole[first:last] = held[start:stop]
        group = self.group(shares.exchange_ranks(name, self.place))
        assert group is not None  # noqa: S101  # else there is nothing to exchange
        # Each row comes from one rank, and zeros from the others.
        total: FloatArray = ops.AllReduce(group=group.name)(Tensor(whole)).asnumpy()
        return total
