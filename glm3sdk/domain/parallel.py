"""How many cards share a run, and which of them work together.

Ranks are numbered with the tensor ranks innermost: rank = data_rank x tensor + tensor_rank. So
the ranks that exchange activations within every layer are neighbours, on one server where a
server has that many cards, and only gradients and weights cross servers, once a step.

Tensor parallelism is Megatron's (Shoeybi et al. 2019, arXiv 1909.08053): attention heads, the
ffn and the vocabulary are shared out. The optimizer's state is shared out among data ranks as in
ZeRO's first stage (Rajbhandari et al. 2019, arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs

from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import InvalidParallelPlanError

T = TypeVar("T")


def _positive(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidParallelPlanError(
            f"parallel.{attribute.name} must be a positive integer, not {value!r}"
        )


@attrs.frozen(kw_only=True)
class ParallelPlan:
    """How a model is spread over ranks.

    Attributes:
        data: ranks, or groups of them, that each train on data of their own.
        tensor: ranks that share each layer.
        optimizer_shard: each data rank keeps a share of the optimizer's state.

    Raises:
        InvalidParallelPlanError: a number below 1.
    """

    data: int = attrs.field(default=1, validator=_positive)
    tensor: int = attrs.field(default=1, validator=_positive)
    optimizer_shard: bool = False

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.data * self.tensor

    def check(self, config: Glm3Config, *, devices: int | None = None) -> None:
        """Check that the model, and the devices, can be shared out like this.

        Args:
            config: the model.
            devices: how many there are; None does not ask.

        Raises:
            InvalidParallelPlanError: the message names every size that cannot.
        """
        if devices is not None and devices != self.ranks:
            raise InvalidParallelPlanError(
                f"parallel.data={self.data} x parallel.tensor={self.tensor} needs {self.ranks} "
                f"devices and there are {devices}; change one of them, or what `glm3 launch` starts"
            )
        faults = self.tensor_faults(config)
        if faults:
            usable = ", ".join(map(str, tensor_choices(config)))
            raise InvalidParallelPlanError(
                f"parallel.tensor={self.tensor} does not divide {', '.join(faults)}; use one of "
                f"{usable}"
            )

    def tensor_faults(self, config: Glm3Config) -> tuple[str, ...]:
        """What the tensor ranks cannot share out, such as "ffn_hidden_size=688".

        Where they are more than the key/value groups, each group is on several of them.
        """
        names = ("num_attention_heads", "ffn_hidden_size", "padded_vocab_size")
        faults = [name for name in names if getattr(config, name) % self.tensor]
        found = [f"{name}={getattr(config, name)}" for name in faults]
        groups = config.multi_query_group_num
        if max(groups, self.tensor) % min(groups, self.tensor):
            found.append(f"multi_query_group_num={groups} (nor the other way round)")
        return tuple(found)

    def place(self, rank_id: int) -> Place:
        """Where a rank stands.

        Raises:
            InvalidParallelPlanError: no such rank.
        """
        if not 0 <= rank_id < self.ranks:
            raise InvalidParallelPlanError(
                f"there is no rank {rank_id}: parallel.data={self.data} x "
                f"parallel.tensor={self.tensor} has ranks 0 to {self.ranks - 1}"
            )
        return Place(self, rank_id)


def tensor_choices(config: Glm3Config) -> tuple[int, ...]:
    """Every number of tensor ranks that can share out a model."""
    heads = config.num_attention_heads
    divisors = (size for size in range(1, heads + 1) if heads % size == 0)
    return tuple(size for size in divisors if not ParallelPlan(tensor=size).tensor_faults(config))


@attrs.frozen
class Place:
    """One rank of a plan, and the ranks that it works with, itself included.

    Attributes:
        plan: of all ranks.
        rank_id: this one.
    """

    plan: ParallelPlan = ParallelPlan()
    rank_id: int = 0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.plan.ranks == 1

    @property
    def data_rank(self) -> int:
        """Which share of the data it trains on."""
        return self.rank_id // self.plan.tensor

    @property
    def tensor_rank(self) -> int:
        """Which share of each layer it computes."""
        return self.rank_id % self.plan.tensor

    @property
    def every_rank(self) -> tuple[int, ...]:
        """All ranks."""
        return tuple(range(self.plan.ranks))

    @property
    def data_ranks(self) -> tuple[int, ...]:
        """Ranks that hold the same share of each layer and train on other data."""
        return tuple(range(self.tensor_rank, self.plan.ranks, self.plan.tensor))

    @property
    def tensor_ranks(self) -> tuple[int, ...]:
        """Ranks that share each layer."""
        first = self.rank_id - self.tensor_rank
        return tuple(range(first, first + self.plan.tensor))

    def group_ranks(self, config: Glm3Config) -> tuple[int, ...]:
        """Tensor ranks that hold the same key/value group; this one alone where none is shared."""
        copies = max(self.plan.tensor // config.multi_query_group_num, 1)
        first = self.rank_id - self.tensor_rank % copies
        return tuple(range(first, first + copies))

    def shard_ranks(self, shards: int) -> tuple[int, ...]:
        """Neighbours among the data ranks that together hold all `shards` of an optimizer state."""
        first = self.data_rank // shards * shards
        return self.data_ranks[first : first + shards]

    def local_config(self, config: Glm3Config) -> Glm3Config:
        """The model that one tensor rank computes: its heads, groups, ffn and vocabulary."""
        tensor = self.plan.tensor
        return attrs.evolve(
            config,
            num_attention_heads=config.num_attention_heads // tensor,
            multi_query_group_num=max(config.multi_query_group_num // tensor, 1),
            ffn_hidden_size=config.ffn_hidden_size // tensor,
            padded_vocab_size=config.padded_vocab_size // tensor,
        )

    def micro_batches(self, batches: Sequence[T]) -> Sequence[T]:
        """This rank's share of a step's micro-batches: every data-th one.

        A step that has the same micro-batches over more or fewer data ranks is the same step,
        and drops the same: so a run may go on with another plan.
        """
        return batches[self.data_rank :: self.plan.data]

    def micro_batch(self, index: int) -> int:
        """The place among all of a step's micro-batches of this rank's own number `index`."""
        return index * self.plan.data + self.data_rank
