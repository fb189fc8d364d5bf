from __future__ import annotations

import pytest

from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.weight_names import to_hugging_face, to_mindformers

HUGGING_FACE = "transformer.embedding.word_embeddings.weight"
MINDFORMERS = "transformer.embedding.embedding_table"


def test_the_embedding_alone_has_two_names():
    names = Glm3Config.preset("glm3-6b").tensor_shapes()
    renamed = {name: to_mindformers(name) for name in names}
    assert {old: new for old, new in renamed.items() if old != new} == {HUGGING_FACE: MINDFORMERS}
    assert [to_hugging_face(name) for name in renamed.values()] == list(names)


@pytest.mark.parametrize("prefix", ["adam_m.", "adam_v.", "accu_grads."])
def test_what_a_run_keeps_of_the_embedding_is_renamed_with_it(prefix: str):
    assert to_hugging_face(prefix + MINDFORMERS) == prefix + HUGGING_FACE
    assert to_mindformers(prefix + HUGGING_FACE) == prefix + MINDFORMERS


@pytest.mark.parametrize(
    "name",
    ["", "embedding_table", "other" + MINDFORMERS, MINDFORMERS + ".scale", "step_num"],
)
def test_other_names_stay(name: str):
    assert to_hugging_face(name) == to_mindformers(name) == name
