from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
from reference.glm3_numpy import forward

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime
from glm3sdk.adapters.storage.hugging_face import HuggingFaceDirectory
from glm3sdk.domain.model import Glm3Config
from glm3sdk.ports.model_runtime import DecodeSession
from glm3sdk.testing.random_checkpoint import write_random_checkpoint

# What the published numbers are to be met with: they are float32 themselves.
PUBLISHED_TOLERANCE = 1e-5
# The oracle computes in float64. The logits reach 4, and float32 rounds such a number by
# 2.4e-7; sums of up to 64 terms through three layers add up to some twenty of these.
ORACLE_TOLERANCE = 1e-5


def load(folder: Path) -> MindSporeRuntime:
    checkpoint = HuggingFaceDirectory(folder)
    return MindSporeRuntime(config=checkpoint.config, checkpoint=checkpoint, profile=CPU)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    expected = np.load(shared_data / "parity" / "glm3_tiny" / "expected.npz")
    return expected["input_ids"], expected["logits"]


@pytest.fixture(scope="module")
def published_session(shared_data: Path) -> Iterator[DecodeSession]:
    runtime = load(shared_data / "parity" / "glm3_tiny")
    session = runtime.start_decode(slots=2, max_seq_length=16)
    yield session
    session.close()
    runtime.close()


def test_one_pass_gives_the_published_logits(
    published_session: DecodeSession, published: tuple[np.ndarray, np.ndarray]
) -> None:
    ids, logits = published
    rows = published_session.prefill(0, ids, all_logits=True)
    np.testing.assert_allclose(rows, logits, atol=PUBLISHED_TOLERANCE, rtol=0)


@pytest.mark.parametrize("first", [1, 3])
def test_a_prompt_and_then_token_by_token_gives_the_published_logits(
    published_session: DecodeSession, published: tuple[np.ndarray, np.ndarray], first: int
) -> None:
    ids, logits = published
    session = published_session
    session.truncate(1, 0)
    rows = [session.prefill(1, ids[:first])]
    rows += [session.decode([1], ids[at : at + 1])[0] for at in range(first, len(ids))]
    np.testing.assert_allclose(
        np.stack(rows), logits[first - 1 :], atol=PUBLISHED_TOLERANCE, rtol=0
    )


WIDE = Glm3Config(
    num_layers=3,
    hidden_size=48,
    ffn_hidden_size=40,
    num_attention_heads=4,
    kv_channels=16,  # 4 x 16 is not 48
    multi_query_group_num=2,
    padded_vocab_size=64,
    seq_length=64,
)
CONFIGS = {
    "two groups": WIDE,
    "one group, stretched rope": attrs.evolve(WIDE, multi_query_group_num=1, rope_ratio=50.0),
    "a group a head, other epsilon": attrs.evolve(
        WIDE, multi_query_group_num=4, layernorm_epsilon=1e-2, kv_channels=8
    ),
}


@attrs.frozen(eq=False)
class Model:
    session: DecodeSession
    ids: list[int]
    logits: np.ndarray


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    config = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("model")
    weights = write_random_checkpoint(folder, config, seed=5)
    ids = np.random.default_rng(1).integers(0, config.padded_vocab_size, 24).tolist()
    runtime = load(folder)
    session = runtime.start_decode(slots=4, max_seq_length=32)
    yield Model(session, ids, forward(config, weights, ids))
    session.close()
    runtime.close()


@pytest.fixture
def model(loaded: Model) -> Model:
    for slot in range(loaded.session.slots):
        loaded.session.truncate(slot, 0)
    return loaded


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=ORACLE_TOLERANCE, rtol=ORACLE_TOLERANCE)


def test_a_whole_prompt_gives_the_logits_of_the_oracle(model: Model) -> None:
    assert_same(model.session.prefill(0, model.ids, all_logits=True), model.logits)
    assert_same(model.session.prefill(1, model.ids), model.logits[-1])


def test_a_prompt_longer_than_a_chunk_gives_the_logits_of_the_oracle(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm3sdk.adapters.mindspore.session.PREFILL_CHUNK", 7)
    assert_same(model.session.prefill(0, model.ids[:4], all_logits=True), model.logits[:4])
    assert_same(model.session.prefill(0, model.ids[4:], all_logits=True), model.logits[4:])
    assert_same(model.session.prefill(1, model.ids), model.logits[-1])


def test_a_prompt_token_by_token_gives_the_logits_of_the_oracle(model: Model) -> None:
    rows = [model.session.decode([2], [token_id])[0] for token_id in model.ids]
    assert_same(np.stack(rows), model.logits)


def test_slots_of_different_lengths_decode_together_as_the_oracle_says(model: Model) -> None:
    held = {3: 1, 0: 9, 2: 20}
    for slot, length in held.items():
        model.session.prefill(slot, model.ids[:length])
    for step in range(3):
        following = [model.ids[length + step] for length in held.values()]
        rows = model.session.decode(list(held), following)
        assert_same(rows, model.logits[[length + step for length in held.values()]])


def test_copied_and_truncated_slots_go_on_as_the_oracle_says(model: Model) -> None:
    model.session.prefill(1, model.ids[::-1])
    model.session.prefill(0, model.ids)
    model.session.copy(0, 1, 10)
    model.session.truncate(0, 5)
    rows = model.session.decode([1, 0], [model.ids[10], model.ids[5]])
    assert_same(rows, model.logits[[10, 5]])
    rest = model.session.prefill(1, model.ids[11:], all_logits=True)
    assert_same(rest, model.logits[11:])
