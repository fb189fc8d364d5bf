"""Which ChatGLM3 a set of tensors is, told from names and shapes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from glm3sdk.domain.model import IGNORED_TENSORS, PRESETS, Glm3Config
from glm3sdk.errors import InvalidConfigError

_EMBEDDING = "transformer.embedding.word_embeddings.weight"
_LAYER = "transformer.encoder.layers."
_HEAD_WIDTHS = (128, 64, 32, 16, 8, 4)


@attrs.frozen(kw_only=True)
class ModelFit:
    """A model, and how a set of tensors differs from it.

    Attributes:
        config: its hyper-parameters; those that no shape shows are a preset's or defaults.
        presets: names of the presets that have these shapes, and the rope_ratio if it is known.
        missing: weights of the model that are not there.
        misshapen: weights that are there in another shape.
        unknown: tensors that are no part of the model, nor of a training run's state.
        state: what a training run keeps beside the weights: the optimizer's tensors, counters.
    """

    config: Glm3Config
    presets: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unknown: tuple[str, ...]
    state: tuple[str, ...]


def fit_model(
    shapes: Mapping[str, tuple[int, ...]], config: Glm3Config | None = None
) -> ModelFit | None:
    """Find the model that tensors belong to.

    Args:
        shapes: by names as Hugging Face has them.
        config: the model's, where it is known; else it is told from the shapes.

    Returns:
        The model, or None where the tensors are not a ChatGLM3's.
    """
    found = config or _config_of(shapes)
    if found is None:
        return None
    expected = found.tensor_shapes()
    presets = tuple(
        name
        for name, preset in PRESETS.items()
        if preset.tensor_shapes() == expected
        and (config is None or preset.rope_ratio == config.rope_ratio)
    )
    others = [name for name in shapes if name not in expected]
    state = tuple(name for name in others if _is_state(name, shapes[name], expected))
    return ModelFit(
        # Shapes do not tell how wide a head is; a published model's is known.
        config=PRESETS[presets[0]] if config is None and presets else found,
        presets=presets,
        missing=tuple(name for name in expected if name not in shapes),
        misshapen=tuple(n for n, shape in expected.items() if shapes.get(n, shape) != shape),
        unknown=tuple(
            name for name in others if name not in state and not name.endswith(IGNORED_TENSORS)
        ),
        state=state,
    )


def _is_state(name: str, shape: tuple[int, ...], weights: Collection[str]) -> bool:
    # adam_m.WEIGHT, exp_avg.WEIGHT and the like; counters are numbers with a plain name.
    return name.partition(".")[2] in weights or (shape in ((), (1,)) and "." not in name)


def _config_of(shapes: Mapping[str, tuple[int, ...]]) -> Glm3Config | None:
    """The hyper-parameters that shapes show."""
    numbers = [
        int(number)
        for name in shapes
        if name.startswith(_LAYER)
        and (number := name[len(_LAYER) :].partition(".")[0]).isascii()
        and number.isdigit()
        and len(number) < 6
    ]
    try:
        vocabulary, hidden = shapes[_EMBEDDING]
        layer = f"{_LAYER}{min(numbers)}."
        qkv, _ = shapes[layer + "self_attention.query_key_value.weight"]
        _, context = shapes[layer + "self_attention.dense.weight"]
        _, ffn = shapes[layer + "mlp.dense_4h_to_h.weight"]
    except (KeyError, ValueError):  # one is not there, or not a matrix
        return None
    for width in _HEAD_WIDTHS:
        heads, rest = divmod(context, width)
        groups, rest_of_groups = divmod(qkv - context, 2 * width)
        if not rest and not rest_of_groups and groups > 0 and heads % groups == 0:
            try:
                return Glm3Config(
                    num_layers=max(numbers) + 1,
                    hidden_size=hidden,
                    ffn_hidden_size=ffn,
                    num_attention_heads=heads,
                    kv_channels=width,
                    multi_query_group_num=groups,
                    padded_vocab_size=vocabulary,
                )
            except InvalidConfigError:  # a shape has a 0
                return None
    return None
