"""The tables of docs/scaling.md: finetunes of ChatGLM3-6B on 8 to 1,024 Ascend cards, projected.

    .venv/bin/python benchmarks/scaling_projection.py

Arithmetic on published figures; nothing of it was run on Ascend. Memory and bytes are those of
`glm3 plan`. A step takes what its tokens take at a published speed, then what its exchanges take:
nothing overlaps, as in the graphs of a step, which exchange when they have computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from glm3sdk.config.loader import load_config
from glm3sdk.domain.communication import ALL_REDUCE, Collective
from glm3sdk.domain.model import Glm3Config
from glm3sdk.services.planning import plan_run
from glm3sdk.services.run_plan import RunPlan

CARDS = (8, 16, 32, 64, 128, 256, 512, 1024)
SEQUENCES = 1024
"""Of a step, over all cards, where a table does not give each card its own."""

# Published: MindFormers r1.3.0, full finetune of GLM3-6B, 2,048 tokens, Atlas 800T A2.
TOKENS_PER_SECOND = 3450.0
# Published: Ascend's msmodeling, profile ATLAS_800_A2_313T_64G and its interconnect.
PEAK_BF16 = 294.9e12
MEMORY_GIB = 64
SERVER = 8
LINK = 196e9 / 7  # bytes/s, one way, from a card to each other card of its server (HCCS)
ROCE = 25e9  # bytes/s, one way, from a card to other servers
EFFICIENCY = 0.7  # of both, as that profile assumes
CALL_S, HOP_WITHIN_S, HOP_BETWEEN_S = 10e-6, 0.5e-6, 1.5e-6
# Arithmetic: with recomputing, an adapter asks for 3 of the 4 passes of a full finetune (forward
# twice, the inputs' gradients; not the weights').
LORA_SPEED = 4 / 3


@attrs.frozen(kw_only=True)
class Case:
    """A table: what is changed in the preset finetune_2k, by the number of cards."""

    title: str
    tensor: int = 1
    batch: int = 1
    sequences_a_card: int | None = None
    more: tuple[str, ...] = ()

    def overrides(self, cards: int) -> list[str]:
        data = cards // self.tensor
        sequences = (self.sequences_a_card or SEQUENCES // cards) * self.tensor
        return [
            "model.path=glm3-6b",
            "model.flash_attention=true",
            f"training.batch_size={self.batch}",
            f"training.accumulate={sequences // self.batch}",
            f"parallel.data={data}",
            f"parallel.tensor={self.tensor}",
            *self.more,
        ]


CASES = (
    Case(title="Full finetune, data parallel with optimizer shards, 1,024 sequences a step"),
    Case(
        title="The same with 8 tensor ranks on each server",
        tensor=8,
        batch=8,
    ),
    Case(
        title="Full finetune, data parallel with optimizer shards, 8 sequences a card and step",
        sequences_a_card=8,
    ),
    Case(
        title="LoRA of rank 8 on query_key_value, data parallel, 1,024 sequences a step",
        more=("lora={rank: 8, targets: [query_key_value]}",),
    ),
)

HEAD = """\
| cards | data x tensor | GiB a card | GB sent a card | of it between servers | compute, s \
| exchange, s | tokens/s | efficiency |
|---|---|---|---|---|---|---|---|---|"""


@attrs.frozen
class Projection:
    """A plan and the seconds of its step."""

    plan: RunPlan
    compute_s: float
    exchange_s: float

    @property
    def tokens_per_second(self) -> float:
        return self.plan.tokens_per_step / (self.compute_s + self.exchange_s)

    @property
    def efficiency(self) -> float:
        """Of cards that never wait for each other."""
        return self.compute_s / (self.compute_s + self.exchange_s)

    def row(self) -> str:
        plan = self.plan
        cells = (
            f"{plan.devices:,}",
            f"{plan.load.data} x {plan.load.tensor}",
            f"{plan.total / 2**30:.1f}",
            _gigabytes(plan.sent),
            _gigabytes(plan.sent_between_servers),
            f"{self.compute_s:.2f}",
            f"{self.exchange_s:.3f}",
            f"{self.tokens_per_second:,.0f}",
            f"{self.efficiency:.1%}",
        )
        return f"| {' | '.join(cells)} |"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.4f}"


def exchange_s(collective: Collective) -> float:
    """Seconds of one collective, within each server and then between them."""
    servers = collective.servers(SERVER)
    here = collective.ranks // servers
    between = collective.between_servers(SERVER)
    hops = HOP_BETWEEN_S * (servers - 1) + HOP_WITHIN_S * (here > 1)
    seconds = CALL_S + hops * (2 if collective.kind == ALL_REDUCE else 1)
    seconds += between / (ROCE * EFFICIENCY)
    if here > 1:
        seconds += (collective.sent - between) / (LINK * (here - 1) * EFFICIENCY)
    return seconds


def projection(case: Case, cards: int) -> Projection:
    config = load_config("finetune_2k", overrides=case.overrides(cards))
    model = Glm3Config.preset("glm3-6b")
    plan = plan_run(config, model, dtype="bfloat16", fused=True, devices=cards, nproc=SERVER)
    speed = TOKENS_PER_SECOND * (LORA_SPEED if config.lora else 1.0)
    return Projection(
        plan,
        plan.tokens_per_step / cards / speed,
        sum(exchange_s(each) * times for each, times in plan.collectives.items()),
    )


def utilisation() -> float:
    """Share of the peak that the published speed makes of a step's products."""
    model = Glm3Config.preset("glm3-6b")
    # 6 operations a weight and token (the embedding has no product), and causal attention.
    weights = model.parameter_count - model.padded_vocab_size * model.hidden_size
    context = model.num_attention_heads * model.kv_channels
    attention = 12 * model.num_layers * context * 2048 / 2
    return TOKENS_PER_SECOND * (6 * weights + attention) / PEAK_BF16


def tables() -> Iterator[str]:
    """Each table as Markdown."""
    for case in CASES:
        rows = [projection(case, cards).row() for cards in CARDS]
        yield "\n".join([f"**{case.title}**\n", HEAD, *rows])


if __name__ == "__main__":
    print(*tables(), sep="\n\n")
