"""Which part of every tensor a rank computes with, and which part of it it stores.

A rank computes with whole heads. query_key_value holds all query heads, then all key groups, then
all value groups, and dense_h_to_4h the gate, then its multiplier: so a rank's share of these is
several ranges of rows. What it stores is one range: MindSpore's strategy files can say that of a
tensor, and a checkpoint's tensors stay those of Hugging Face. The ranks exchange rows when they
save; a rank that loads reads the ranges that it computes with.

    tensor                          computes with           stores
    word_embeddings, output_layer   V/t rows                the same
    query_key_value, its bias       H/t heads, and G/t      1/t of the rows, where t divides them
      and lora_B                    groups of keys and of   (else all)
                                    values, or 1 of each
    dense_h_to_4h and lora_B        2 x ffn/t rows          1/t of the rows
    dense, dense_4h_to_h, lora_A    1/t of the columns      the same
    norms, other adapter matrices   all                     the same

Optimizer state of a tensor is split further, along its first dimension, into as many shards as
divide both its rows and the data ranks. What every tensor rank holds alike is not split again: it
is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import attrs

from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, Place
from glm3sdk.domain.sharding import Layout, Region, Strategy, shape_of, whole

MASTER = "master."
FIRST_MOMENT = "first_moment."
SECOND_MOMENT = "second_moment."
STATE_PREFIXES = (MASTER, FIRST_MOMENT, SECOND_MOMENT)

BETA_POWERS = ("beta1_power", "beta2_power")

Rows = tuple[int, int]
"""A range of rows: its start and its stop."""


@attrs.frozen
class Share:
    """Ranges of a tensor's rows, one after the other, all with the same columns.

    Attributes:
        full_shape: of the whole tensor.
        rows: ranges of the first dimension, in the order in which they are held; none for a
            tensor of no dimensions.
        columns: the range of the second dimension; None takes all.
    """

    full_shape: tuple[int, ...]
    rows: tuple[Rows, ...]
    columns: Rows | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The same as regions of the tensor, to be joined along the first dimension."""
        if not self.full_shape:
            return ((),)
        rest = list(whole(self.full_shape[1:]))
        if self.columns is not None:
            rest[0] = slice(*self.columns)
        return tuple((slice(*rows), *rest) for rows in self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is held."""
        if not self.full_shape:
            return ()
        length = sum(stop - start for start, stop in self.rows)
        return (length, *shape_of(self.regions[0][1:]))

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor, in its order."""
        return self.regions == (whole(self.full_shape),)

    def part(self, start: int, stop: int) -> Share:
        """Rows start to stop of what is held."""
        found, begin = [], 0
        for first, last in self.rows:
            end = begin + last - first
            low, high = max(start, begin), min(stop, end)
            if low < high:
                found.append((first + low - begin, first + high - begin))
            begin = end
        return attrs.evolve(self, rows=tuple(found))


@attrs.frozen
class Sums:
    """Rows of a rank's gradient that are a part of the true one, to be summed over `ranks`."""

    rows: Rows
    ranks: tuple[int, ...]


@attrs.frozen(kw_only=True)
class TensorShares:
    """The shares of a model's tensors, of its adapter's, and of the optimizer's state of both.

    A name is a weight's or an adapter matrix's, or that with a prefix of `STATE_PREFIXES`.

    Attributes:
        config: of the whole model.
        plan: how it is spread; checked by `ParallelPlan.check`.
        lora: the adapter that is trained, if one is.
    """

    config: Glm3Config
    plan: ParallelPlan
    lora: Lora | None = None
    _shapes: Mapping[str, tuple[int, ...]] = attrs.field(init=False, eq=False, repr=False)

    @_shapes.default
    def _all_shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = self.config.tensor_shapes()
        for pair in self.lora.pairs(self.config) if self.lora else ():
            shapes |= {pair.name_a: pair.shape_a, pair.name_b: pair.shape_b}
        return shapes | dict.fromkeys(BETA_POWERS, ())

    def trained(self) -> tuple[str, ...]:
        """Names of what is trained."""
        if self.lora is None:
            return tuple(self.config.tensor_shapes())
        pairs = self.lora.pairs(self.config)
        return tuple(name for pair in pairs for name in (pair.name_a, pair.name_b))

    def full_shape(self, name: str) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return self._shapes[_of(name)]

    def share(self, name: str, place: Place) -> Share:
        """What a rank computes with; of optimizer state, its shard."""
        share = self._tensor_share(_of(name), place)
        shards = self.shards(name)
        if shards == 1:
            return share
        length = share.shape[0] // shards
        index = place.data_rank % shards
        return share.part(index * length, (index + 1) * length)

    def shards(self, name: str) -> int:
        """Into how many optimizer shards a rank's share of a tensor is split; 1 of a weight."""
        weight = _of(name)
        if name == weight or not self._is_sharded(weight):
            return 1
        rows = self._tensor_share(weight, self.plan.place(0)).shape[0]
        return math.gcd(rows, self.plan.data)

    def sums(self, name: str, place: Place) -> Sums | None:
        """What of a trained tensor's gradient each tensor rank has only a part of."""
        length = self.share(name, place).shape[0]
        if self.plan.tensor > 1 and ".lora_" in name and self.is_replicated(name):
            return Sums((0, length), place.tensor_ranks)
        ranks = place.group_ranks(self.config)
        if len(ranks) > 1 and _is_query_key_value(name) and not self.is_replicated(name):
            heads = self.config.num_attention_heads // self.plan.tensor
            return Sums((heads * self.config.kv_channels, length), ranks)
        return None

    def is_replicated(self, name: str) -> bool:
        """Whether every tensor rank holds all of the tensor."""
        return _split(_of(name)) is None

    def exchanged(self, name: str) -> bool:
        """Whether what a rank stores is not what it computes with."""
        return self.plan.tensor > 1 and _is_fused(_of(name))

    def exchange_ranks(self, name: str, place: Place) -> tuple[int, ...]:
        """The ranks among which all of a tensor is found."""
        return place.tensor_ranks if self.shards(name) == 1 else place.every_rank

    def contributes(self, name: str, place: Place) -> tuple[tuple[Rows, Rows], ...]:
        """The rows, here and in the whole tensor, that this rank gives when ranks exchange them.

        Every row of the tensor is given by one of `exchange_ranks`.
        """
        share = self.share(name, place)
        copies = len(place.group_ranks(self.config))
        shards = self.shards(name)
        if shards > 1 and place.data_rank >= shards:  # another data rank has the same shard
            return ()
        first_value = self.config.num_attention_heads * self.config.kv_channels
        found, begin = [], 0
        for start, stop in share.rows:
            here = (begin, begin + stop - start)
            begin = here[1]
            copied = _is_query_key_value(name) and start >= first_value
            if not copied or place.tensor_rank % copies == 0:
                found.append((here, (start, stop)))
        return tuple(found)

    def layout(self, name: str) -> Layout:
        """How a tensor is stored over all ranks, in the terms of strategy files."""
        weight, shape = _of(name), self.full_shape(name)
        tensor, split = self.plan.tensor, _split(weight)
        axes = [-1] * len(shape)
        if split is not None and shape[split] % tensor == 0:
            axes[split] = 0
        shards = 1
        if name != weight and self._is_sharded(weight):
            rows = shape[0] // (tensor if axes[0] == 0 else 1)
            shards = math.gcd(rows, self.plan.data)
        return Layout(
            dev_matrix=(self.plan.data, tensor),
            tensor_map=axes,
            opt_weight_shard_step=tensor if shards > 1 else 0,
            opt_weight_shard_size=shards if shards > 1 else 0,
        )

    def stored(self, name: str, place: Place) -> Region:
        """The part of a tensor that a rank stores."""
        return self.layout(name).region(self.full_shape(name), place.rank_id)

    def writes(self, name: str, place: Place) -> bool:
        """Whether a rank is the first of those that store the same part of a tensor."""
        layout, shape = self.layout(name), self.full_shape(name)
        mine = layout.region(shape, place.rank_id)
        return all(layout.region(shape, rank) != mine for rank in range(place.rank_id))

    def strategy(self, names: Iterable[str]) -> Strategy:
        """What a strategy file says of these tensors."""
        return Strategy(({name: self.layout(name) for name in names},))

    def _is_sharded(self, weight: str) -> bool:
        """Whether optimizer state of that tensor is split among the data ranks."""
        if not self.plan.optimizer_shard or not self._shapes[weight]:
            return False
        return self.plan.tensor == 1 or not self.is_replicated(weight)

    def _tensor_share(self, weight: str, place: Place) -> Share:
        shape, split = self._shapes[weight], _split(weight)
        tensor, index = self.plan.tensor, place.tensor_rank
        if not shape:
            return Share(shape, ())
        everything = ((0, shape[0]),)
        if tensor == 1 or split is None:
            return Share(shape, everything)
        if split == 1:
            return Share(shape, everything, _piece(0, shape[1], tensor, index))
        if not _is_fused(weight):
            return Share(shape, (_piece(0, shape[0], tensor, index),))
        config = self.config
        if not _is_query_key_value(weight):
            half = config.ffn_hidden_size
            return Share(shape, tuple(_piece(i * half, half, tensor, index) for i in range(2)))
        queries = config.num_attention_heads * config.kv_channels
        groups = config.multi_query_group_num
        # Ranks next to each other share a group where there are fewer groups than ranks.
        pieces = min(tensor, groups)
        piece = index * pieces // tensor
        width = groups * config.kv_channels
        rows = (
            _piece(0, queries, tensor, index),
            *(_piece(queries + i * width, width, pieces, piece) for i in range(2)),
        )
        return Share(shape, rows)


def _piece(start: int, length: int, pieces: int, index: int) -> Rows:
    """One of `pieces` equal ranges."""
    size = length // pieces
    return start + index * size, start + (index + 1) * size


def _of(name: str) -> str:
    """The tensor that a piece of optimizer state belongs to."""
    for prefix in STATE_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _layer(name: str) -> tuple[str, str]:
    """A linear layer's name and which of its tensors it is: ("dense", "lora_A")."""
    parts = name.split(".")
    if parts[-1] == "weight" and parts[-2].startswith("lora_"):
        return parts[-3], parts[-2]
    return parts[-2] if len(parts) > 1 else "", parts[-1]


def _is_query_key_value(name: str) -> bool:
    return _layer(name)[0] == "query_key_value"


def _is_fused(weight: str) -> bool:
    layer, tensor = _layer(weight)
    return layer in {"query_key_value", "dense_h_to_4h"} and tensor != "lora_A"


def _split(weight: str) -> int | None:
    """The dimension that tensor ranks share out; None for what each holds whole."""
    layer, tensor = _layer(weight)
    if layer in {"query_key_value", "dense_h_to_4h"}:
        return None if tensor == "lora_A" else 0
    if layer in {"dense", "dense_4h_to_h"}:
        return None if tensor == "lora_B" else 1
    return 0 if layer in {"word_embeddings", "output_layer"} else None
