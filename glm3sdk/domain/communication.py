"""What ranks send each other in a training step, in bytes, from shapes alone.

N = batch_size x seq_length tokens of a micro-batch, e bytes to an item of its dtype; h is the
model's hidden width, G its groups; t tensor ranks, d data ranks, W = t x d; P trained parameters
on a rank.

    every micro-batch, where t > 1                        bytes that go in
    embedding, forward               AllReduce over t     N h e
    each layer, forward              AllReduce over t     2 N h e
    each layer, backward             AllReduce over t     2 N h e
    each layer recomputed            AllReduce over t     2 N h e
    output layer, backward           AllReduce over t     N h e
    loss                             AllGather over t     12 N

    every step
    counted labels                   AllGather over W     4
    loss and squared norm            AllGather over W     8
    gradients, where d > 1           AllReduce over d     4 P
      of which shards are used       ReduceScatter over d the same, where the device has it
    weights from their shards        AllGather over s     e a parameter of the shard, s shards
    adapter matrices that t ranks    AllReduce over t     4 a parameter
      each have a part of the gradient of
    key and value rows, and lora_B   AllReduce over t/G   4 a parameter
      of them, where t > G

An adapter's frozen first layer asks for no gradient of what comes before its first adapter: a
LoRA run does without the AllReduce there. Loading, saving and evaluation are not counted, nor the
few bytes by which ranks agree before each step to go on.

A collective of n bytes over p ranks moves, on each of them, in the ring algorithm (Patarasuk and
Yuan 2009): AllReduce 2 (p - 1) / p n sent and as much received, ReduceScatter (p - 1) / p n,
AllGather (p - 1) n. Where AllGather runs over all ranks alone (`Collectives.gathers_in_groups`),
an AllReduce over p n bytes does its work.

Of that, what leaves a server that has l of the p ranks, which are on S = p / l servers: AllReduce
2 (S - 1) / p n, ReduceScatter (S - 1) / p n, AllGather (S - 1) n. That is an exchange within each
server, and one between the ranks that have the same place on theirs; it sends as much in all as
one ring does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import attrs

from glm3sdk.domain.lora import LINEAR_LAYERS
from glm3sdk.domain.tensor_shares import FIRST_MOMENT, TensorShares

ALL_REDUCE = "AllReduce"
ALL_GATHER = "AllGather"
REDUCE_SCATTER = "ReduceScatter"


@attrs.frozen(kw_only=True)
class Collectives:
    """What a device's collectives can do; the defaults are Ascend's."""

    gathers_in_groups: bool = True
    reduce_scatter: bool = True


@attrs.frozen(kw_only=True)
class StepLoad:
    """What one rank trains in a step.

    Attributes:
        batch_size: sequences of a micro-batch.
        seq_length: tokens of each.
        micro_batches: of this data rank.
        item_bytes: of a weight and an activation.
        recompute: layers are computed again in the backward pass.
        collectives: the device's.
    """

    batch_size: int
    seq_length: int
    micro_batches: int = 1
    item_bytes: int = 2
    recompute: bool = False
    collectives: Collectives = Collectives()


@attrs.frozen
class Collective:
    """One collective of a rank.

    Attributes:
        kind: "AllReduce", "AllGather" or "ReduceScatter".
        ranks: how many take part.
        payload: bytes that this rank puts in.
        stride: distance between those that take part; 1 for neighbours.
    """

    kind: str
    ranks: int
    payload: int
    stride: int = 1

    @property
    def sent(self) -> int:
        """Bytes that this rank sends, and as many that it receives, around a ring."""
        if self.kind == ALL_GATHER:
            return (self.ranks - 1) * self.payload
        return self._passes * (self.ranks - 1) * self.payload // self.ranks

    def servers(self, nproc: int) -> int:
        """On how many servers of nproc ranks its members are, at most."""
        if nproc % self.stride:
            return self.ranks
        return self.ranks // math.gcd(self.ranks, nproc // self.stride)

    def between_servers(self, nproc: int) -> int:
        """Bytes of `sent` that leave the server, at most, where each has nproc ranks."""
        others = self.servers(nproc) - 1
        if self.kind == ALL_GATHER:
            return others * self.payload
        return self._passes * others * self.payload // self.ranks

    @property
    def _passes(self) -> int:
        return 2 if self.kind == ALL_REDUCE else 1


def step_collectives(shares: TensorShares, load: StepLoad) -> Counter[Collective]:
    """Every collective of a rank in a training step, and how often it runs."""
    found: Counter[Collective] = Counter()
    if shares.plan.ranks == 1:
        return found
    for collective, times in _micro_batch(shares, load):
        found[collective] += times * load.micro_batches
    every = shares.plan.ranks
    found.update([Collective(ALL_GATHER, every, 4), Collective(ALL_GATHER, every, 8)])
    for name in shares.trained():
        found.update(_gradient(shares, name, load))
    return found


def sent_bytes(collectives: Counter[Collective]) -> int:
    """Bytes that a rank sends, and as many that it receives."""
    return sum(collective.sent * times for collective, times in collectives.items())


def _micro_batch(shares: TensorShares, load: StepLoad) -> Iterator[tuple[Collective, int]]:
    ranks, layers = shares.plan.tensor, shares.config.num_layers
    if ranks == 1:
        return
    tokens = load.batch_size * load.seq_length
    passes = 1 + 4 * layers + 1 - _without_gradient(shares)
    if load.recompute:
        passes += 2 * layers
    yield (
        Collective(ALL_REDUCE, ranks, tokens * shares.config.hidden_size * load.item_bytes),
        passes,
    )
    yield _gather(shares, ranks, 12 * tokens, 1, load), 1


def _without_gradient(shares: TensorShares) -> int:
    """How many inputs in front of the first trained matrix need no gradient."""
    if shares.lora is None:
        return 0
    first = min(LINEAR_LAYERS.index(target) for target in shares.lora.targets)
    # query_key_value and dense come before, or at, dense_h_to_4h.
    return 1 if first < LINEAR_LAYERS.index("dense_h_to_4h") else 2


def _gradient(shares: TensorShares, name: str, load: StepLoad) -> Iterator[Collective]:
    """What a step does for one trained tensor."""
    plan, place = shares.plan, shares.plan.place(0)
    shape = shares.share(name, place).shape
    size, width = math.prod(shape), math.prod(shape[1:])
    sums = shares.sums(name, place)
    if sums:
        rows = sums.rows[1] - sums.rows[0]
        yield Collective(ALL_REDUCE, len(sums.ranks), 4 * rows * width)
    shards = shares.shards(FIRST_MOMENT + name)
    if plan.data > 1:
        scatters = load.collectives.reduce_scatter and 1 < shards == plan.data
        kind = REDUCE_SCATTER if scatters else ALL_REDUCE
        yield Collective(kind, plan.data, 4 * size, plan.tensor)
    if shards > 1:
        item = 4 if shares.lora else load.item_bytes
        yield _gather(shares, shards, item * size // shards, plan.tensor, load)


def _gather(
    shares: TensorShares, ranks: int, payload: int, stride: int, load: StepLoad
) -> Collective:
    if load.collectives.gathers_in_groups or ranks == shares.plan.ranks:
        return Collective(ALL_GATHER, ranks, payload, stride)
    return Collective(ALL_REDUCE, ranks, ranks * payload, stride)
