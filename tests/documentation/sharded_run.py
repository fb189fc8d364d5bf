"""Lay glm3_6b.ckpt out as a run of two cards left it, and write the strategy of eight."""

from __future__ import annotations

import sys
from pathlib import Path

from glm3sdk import split_checkpoint
from glm3sdk.adapters.storage.strategy_file import encode_strategy
from glm3sdk.adapters.storage.tensor_file import open_tensor_file
from glm3sdk.domain.sharding import Layout, Strategy

WHOLE = Path("glm3_6b.ckpt")


def strategy(ranks: int) -> Strategy:
    """Matrices split by rows where so many ranks divide them."""
    layouts = {
        name: Layout([ranks], [0, -1])
        for name, spec in open_tensor_file(WHOLE).tensors.items()
        if len(spec.shape) == 2 and spec.shape[0] % ranks == 0
    }
    return Strategy((layouts,))


def main(output: Path) -> None:
    """Write OUTPUT/strategy, OUTPUT/checkpoint/rank_N and ./strategy-8."""
    (output / "strategy").mkdir(parents=True)
    (output / "strategy" / "ckpt_strategy_rank_0.ckpt").write_bytes(encode_strategy(strategy(2)))
    Path("strategy-8").mkdir()
    Path("strategy-8", "ckpt_strategy_rank_0.ckpt").write_bytes(encode_strategy(strategy(8)))
    split_checkpoint(WHOLE, output / "checkpoint", strategy=output / "strategy")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
