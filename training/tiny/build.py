"""Build the bundled model from the dialogues beside this file: `make tiny`.

Trains a SentencePiece vocabulary and a ChatGLM3 of preset "tiny" on MindSpore's CPU, checks
that it answers what it was trained on, and writes glm3sdk/assets/tiny in fp16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from safetensors.numpy import save_file
from variations import variations

from glm3sdk import GenerationConfig, Glm3Config, Glm3Service, Message, Role, load_tokenizer
from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.adapters.word_segmentation import jieba_words
from glm3sdk.domain.history import read_history
from glm3sdk.domain.metrics import WordSegmenter
from glm3sdk.domain.prompt import render_message
from glm3sdk.domain.training import Schedule
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.ports.training import AdamW, StatePart, TokenBatch, TrainingPlan
from glm3sdk.services.examples import bucketed_epoch, encode_conversation

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "glm3sdk" / "assets" / "tiny"
CONFIG = Glm3Config.preset("tiny")
BUCKETS = (64, 128, 192, 256, 384, 640)
SPECIAL_TOKENS = 9
VARIED_SHARE = 0.8
_BORDER = "\x01"

log = logging.getLogger("tiny")


def read_dialogues() -> list[tuple[Message, ...]]:
    """Every dialogue of dialogues/*.jsonl."""
    lines = [
        line
        for path in sorted((HERE / "dialogues").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [read_history(json.loads(line)["messages"]) for line in lines]


def train_tokenizer(dialogues: list[tuple[Message, ...]], directory: Path) -> Tokenizer:
    """Train a vocabulary with byte fallback and the published file's conventions.

    Pieces do not reach over words: a city that is one piece with what follows it could not
    be copied from where something else follows.
    """
    segment = jieba_words()
    texts = {
        _with_word_borders(line, segment)
        for dialogue in dialogues
        for message in dialogue
        for text in render_message(message)
        if isinstance(text, str)
        for line in text.split("\n")
        if line
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(texts)),
        pretokenization_delimiter=_BORDER,
        split_digits=True,
        model_prefix=str(directory / "tokenizer"),
        vocab_size=CONFIG.padded_vocab_size - SPECIAL_TOKENS,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    return load_tokenizer(directory)


def _with_word_borders(line: str, segment: WordSegmenter) -> str:
    """A border between words, but none beside a space: "▁is" is a piece."""
    words = segment(line)
    borders = (
        "" if " " in word[-1] + after[0] else _BORDER for word, after in itertools.pairwise(words)
    )
    return "".join(itertools.chain.from_iterable(zip(words, (*borders, ""), strict=True)))


def epochs(
    dialogues: list[tuple[Message, ...]], tokenizer: Tokenizer, *, batch_tokens: int, steps: int
) -> Iterator[TokenBatch]:
    """Batches without end. The variations differ in every epoch: they cannot be memorised.

    The last steps see the written dialogues alone, which the model is to give back.
    """
    written = [encode_conversation(dialogue, tokenizer) for dialogue in dialogues]
    given = 0
    for epoch in itertools.count():
        examples = list(written)
        if given < VARIED_SHARE * steps:
            examples += [encode_conversation(each, tokenizer) for each in variations(seed=epoch)]
        for batch in bucketed_epoch(
            examples, buckets=BUCKETS, batch_tokens=batch_tokens, seed=epoch
        ):
            yield batch
            given += 1


def initial_weights(*, seed: int) -> dict[str, HostArray]:
    """Random weights to start from.

    Embeddings are large beside what the layers first add to them, so that a token's identity
    survives to the last layer: copying depends on it.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in CONFIG.tensor_shapes().items():
        if name.endswith("layernorm.weight"):
            values = np.ones(shape)
        elif name.endswith("bias"):
            values = np.zeros(shape)
        elif name.endswith("word_embeddings.weight"):
            values = rng.normal(0.0, 1.0, shape)
        elif name.endswith("output_layer.weight"):
            values = rng.normal(0.0, 0.02, shape)
        else:
            adds = name.endswith((".dense.weight", ".dense_4h_to_h.weight"))
            scale = 1.0 / np.sqrt(2 * CONFIG.num_layers) if adds else 1.0
            values = rng.normal(0.0, scale / np.sqrt(shape[1]), shape)
        weights[name] = values.astype(np.float32)
    return weights


def publish(directory: Path, weights: dict[str, HostArray], dtype: str) -> None:
    """Write a model directory beside the tokenizer."""
    converted = {name: value.astype(dtype) for name, value in weights.items()}
    save_file(converted, directory / "model.safetensors", metadata={"format": "np"})
    values = {**CONFIG.to_hugging_face(), "torch_dtype": dtype}
    (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def train(directory: Path, batches: Iterator[TokenBatch], *, steps: int) -> dict[str, HostArray]:
    """Train from random weights and return the trained ones."""
    publish(directory, initial_weights(seed=1), "float32")
    reader = HuggingFaceDirectory(directory)
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=reader, profile=CPU)
    session = runtime.start_training(plan=TrainingPlan(optimizer=AdamW(weight_decay=0.01)))
    schedule = Schedule(kind="cosine", peak=2e-3, end=2e-5, warmup_steps=60, total_steps=steps)
    started, losses = time.perf_counter(), []
    for step in range(steps):
        metrics = session.train_step([next(batches)], learning_rate=schedule(step))
        losses.append(metrics.loss)
        if step % 100 == 99:
            seconds = time.perf_counter() - started
            log.info("step %d/%d loss %.4f %.0f s", step + 1, steps, np.mean(losses), seconds)
            losses.clear()
    weights = dict(session.state(StatePart.WEIGHTS))
    session.close()
    runtime.close()
    return weights


def check(directory: Path, tokenizer: Tokenizer, dialogues: list[tuple[Message, ...]]) -> float:
    """Share of trained assistant turns that greedy decoding gives back to the character."""
    reader = HuggingFaceDirectory(directory)
    runtime = MindSporeRuntime(config=CONFIG, checkpoint=reader, profile=CPU)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=300)
    wanted = list(_turns(dialogues))
    with Glm3Service(runtime=runtime, tokenizer=tokenizer, slots=8, owns_runtime=True) as service:
        replies = service.chat_batch([history for history, _ in wanted], greedy)
    right = 0
    for (history, expected), reply in zip(wanted, replies, strict=True):
        answered = reply.history[len(history) :][:1]
        if answered == (expected,):
            right += 1
        else:
            log.info("%s: expected %r, got %r", history[-1].content[-60:], expected, answered)
    return right / len(wanted)


def _turns(
    dialogues: list[tuple[Message, ...]],
) -> Iterator[tuple[tuple[Message, ...], Message]]:
    for dialogue in dialogues:
        for index, message in enumerate(dialogue):
            after_thought = index > 0 and dialogue[index - 1].role is Role.ASSISTANT
            if message.role is Role.ASSISTANT and index > 0 and not after_thought:
                yield dialogue[:index], message


def main() -> None:
    """Build, check and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dialogues = read_dialogues()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer = train_tokenizer([*dialogues, *variations(seed=0)], directory)
        log.info("%d dialogues, vocabulary %d", len(dialogues), tokenizer.vocab_size)
        steps = arguments.steps
        batches = epochs(dialogues, tokenizer, batch_tokens=arguments.batch_tokens, steps=steps)
        weights = train(directory, batches, steps=steps)
        publish(directory, weights, "float16")
        share = check(directory, tokenizer, dialogues)
        log.info("%.1f%% of the trained turns come back to the character", 100 * share)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "model.safetensors", "tokenizer.model"):
            shutil.copyfile(directory / file, arguments.out / file)


if __name__ == "__main__":
    main()
