"""Encoding of training records against bare SentencePiece: same records, one run, interleaved.

    .venv/bin/python benchmarks/dataset_encoding.py FILE.json --tokenizer DIRECTORY

FILE is in AdvertiseGen's form, and so is the default,
advertisegen/dev.json under GLM3SDK_TEST_DATA. Ours is all of `open_dataset`: reading lines,
JSON, both texts to ids, labels, preflight's counts, the copy that stays in memory. Bare is `encode`
on the two texts of each record, already in memory. What counts is the ratio of the medians;
at least 0.5 is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.config.schema import DataFormat, DataSettings
from glm3sdk.services.data_order import DataOrder
from glm3sdk.services.datasets import open_dataset


def seconds(action: Callable[[], object]) -> float:
    """Time one call, in seconds of this process on a core."""
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    """Measure and print one JSON object."""
    data = Path(os.environ.get("GLM3SDK_TEST_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=data / "advertisegen" / "dev.json")
    parser.add_argument("--tokenizer", type=Path, default=data / "tokenizer")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tokenizer = SentencePieceTokenizer(arguments.tokenizer)
    bare = sentencepiece.SentencePieceProcessor()
    path = arguments.tokenizer
    bare.Load(str(path / "tokenizer.model" if path.is_dir() else path))
    lines = arguments.file.read_text("utf-8").splitlines()
    records: list[tuple[str, str]] = []
    adgen = DataSettings(
        path=str(arguments.file),
        format=DataFormat.ADGEN,
        max_source_length=64,
        max_target_length=127,
    )
    chat = DataSettings(path=str(arguments.file), format=DataFormat.ADGEN_CHAT, max_seq_length=256)

    def read_records() -> list[tuple[str, str]]:
        return [(record["content"], record["summary"]) for record in map(json.loads, lines)]

    def encode_bare() -> None:
        for content, summary in records:
            bare.encode(content)
            bare.encode(summary)

    def encode(settings: DataSettings) -> None:
        open_dataset(JsonLinesFile(arguments.file), settings, tokenizer)

    dataset = open_dataset(JsonLinesFile(arguments.file), adgen, tokenizer)
    order = DataOrder(records=len(dataset), batch_size=8)

    def batches() -> None:
        for step in range(order.steps(1)):
            for indices in order.micro_batches(step):
                dataset.batch(indices)

    actions: dict[str, Callable[[], object]] = {
        "bare SentencePiece": encode_bare,
        "adgen": lambda: encode(adgen),
        "adgen-chat": lambda: encode(chat),
        "an epoch of batches": batches,
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(arguments.rounds):
        records = read_records()
        for name, action in actions.items():
            times[name].append(seconds(action))
    medians = {name: statistics.median(values) for name, values in times.items()}
    report = {
        "records": len(lines),
        "records/s": {name: round(len(lines) / value) for name, value in medians.items()},
        "speed of bare SentencePiece": {
            name: round(medians["bare SentencePiece"] / medians[name], 2)
            for name in ("adgen", "adgen-chat")
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
