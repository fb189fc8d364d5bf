"""Hugging Face's names of weights and MindFormers', which differ in one.

The difference is that of MindFormers' own script for GLM3 (`convert_weight.py`): the embedding's
table is `embedding_table` there. Names of what a training run keeps beside a weight, such as
adam_m.WEIGHT, end in the weight's.
"""

from __future__ import annotations

_HUGGING_FACE = "transformer.embedding.word_embeddings.weight"
_MINDFORMERS = "transformer.embedding.embedding_table"


def to_hugging_face(name: str) -> str:
    """The name that Hugging Face has for a weight; its own names stay as they are."""
    return _renamed(name, _MINDFORMERS, _HUGGING_FACE)


def to_mindformers(name: str) -> str:
    """The name that MindFormers has for a weight; its own names stay as they are."""
    return _renamed(name, _HUGGING_FACE, _MINDFORMERS)


def _renamed(name: str, old: str, new: str) -> str:
    if name == old or name.endswith(f".{old}"):
        return name.removesuffix(old) + new
    return name
