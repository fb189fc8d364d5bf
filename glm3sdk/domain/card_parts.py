"""What a card of a plan holds of each tensor, told once for all layers and cards.

Cards hold other rows, and as many: so thousands of them are told in a dozen lines.
"""

from __future__ import annotations

import re

import attrs

from glm3sdk.domain.tensor_shares import FIRST_MOMENT, TensorShares


@attrs.frozen(kw_only=True)
class CardPart:
    """A card's part of the tensors of one name.

    Attributes:
        name: the tensors'; `*` stands for every layer's number.
        tensors: how many there are.
        shape: of one as a whole.
        card: the shape of what a card computes with.
        state: the shape of each moment that it keeps; None of what is not trained.
    """

    name: str
    tensors: int
    shape: tuple[int, ...]
    card: tuple[int, ...]
    state: tuple[int, ...] | None


def card_parts(shares: TensorShares) -> tuple[CardPart, ...]:
    """A card's part of every tensor of the model and of its adapter."""
    place, trained = shares.plan.place(0), set(shares.trained())
    found: dict[str, CardPart] = {}
    for name in dict.fromkeys([*shares.config.tensor_shapes(), *shares.trained()]):
        kind = re.sub(r"\.layers\.\d+\.", ".layers.*.", name)
        if kind in found:
            found[kind] = attrs.evolve(found[kind], tensors=found[kind].tensors + 1)
            continue
        state = shares.share(FIRST_MOMENT + name, place).shape if name in trained else None
        found[kind] = CardPart(
            name=kind,
            tensors=1,
            shape=shares.full_shape(name),
            card=shares.share(name, place).shape,
            state=state,
        )
    return tuple(found.values())
