"""The hyper-parameters of a ChatGLM2/3 model and the names and shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from glm3sdk.errors import InvalidConfigError, unknown_name


def _positive(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidConfigError(f"{attribute.name} must be a positive integer, not {value!r}")


def _positive_number(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidConfigError(f"{attribute.name} must be positive, not {value!r}")


@attrs.frozen(kw_only=True)
class Glm3Config:
    """Hyper-parameters under Hugging Face's names (config.json of THUDM/chatglm3-6b).

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of one half of the SwiGLU layer.
        num_attention_heads: query heads.
        kv_channels: width of a head; heads x kv_channels need not equal hidden_size.
        multi_query_group_num: key/value heads (grouped-query attention).
        padded_vocab_size: rows of the embedding and of the output layer.
        seq_length: longest context that the model was made for.
        layernorm_epsilon: epsilon of RMSNorm.
        rope_ratio: multiplies the rotary base of 10000 (50 for 32k, 500 for 128k).
    """

    num_layers: int = attrs.field(default=28, validator=_positive)
    hidden_size: int = attrs.field(default=4096, validator=_positive)
    ffn_hidden_size: int = attrs.field(default=13696, validator=_positive)
    num_attention_heads: int = attrs.field(default=32, validator=_positive)
    kv_channels: int = attrs.field(default=128, validator=_positive)
    multi_query_group_num: int = attrs.field(default=2, validator=_positive)
    padded_vocab_size: int = attrs.field(default=65024, validator=_positive)
    seq_length: int = attrs.field(default=8192, validator=_positive)
    layernorm_epsilon: float = attrs.field(default=1e-5, validator=_positive_number)
    rope_ratio: float = attrs.field(default=1.0, validator=_positive_number)

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.multi_query_group_num:
            raise InvalidConfigError(
                f"multi_query_group_num={self.multi_query_group_num} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.kv_channels % 4:
            raise InvalidConfigError(
                f"kv_channels={self.kv_channels} must be a multiple of 4: "
                "rope turns pairs in the first half of each head"
            )

    @property
    def qkv_size(self) -> int:
        """Rows of query_key_value: query heads, then key heads, then value heads."""
        heads = self.num_attention_heads + 2 * self.multi_query_group_num
        return heads * self.kv_channels

    @property
    def rope_base(self) -> float:
        """The rotary base: 10000 x rope_ratio."""
        return 10000.0 * self.rope_ratio

    @classmethod
    def preset(cls, name: str) -> Glm3Config:
        """Return a preset: tiny, glm3-6b, glm3-6b-32k or glm3-6b-128k.

        Raises:
            UnknownNameError: no preset goes by that name.
        """
        if name not in PRESETS:
            raise unknown_name("model preset", name, PRESETS)
        return PRESETS[name]

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Glm3Config:
        """Read the values of a Hugging Face config.json.

        Raises:
            InvalidConfigError: another architecture, or a variant that the cells do not build.
        """
        if not isinstance(values, Mapping):
            raise InvalidConfigError(f"config.json must hold an object, not {values!r:.80}")
        model_type = values.get("model_type")
        if model_type != "chatglm":
            raise InvalidConfigError(
                f"unknown architecture: model_type is {model_type!r}; "
                "this SDK reads 'chatglm' (ChatGLM2 and ChatGLM3)"
            )
        for key, expected in _FIXED.items():
            if key in values and values[key] != expected:
                raise InvalidConfigError(
                    f"{key}={values[key]!r} is a variant that ChatGLM3 does not use "
                    f"(expected {expected!r})"
                )
        known = {field.name for field in attrs.fields(cls)}
        missing = sorted(_REQUIRED - values.keys())
        if missing:
            raise InvalidConfigError(f"config.json lacks {', '.join(missing)}")
        chosen = {key: values[key] for key in known & values.keys()}
        if not values.get("multi_query_attention", True):
            chosen["multi_query_group_num"] = chosen["num_attention_heads"]
        try:
            return cls(**chosen)
        except TypeError as exc:
            raise InvalidConfigError(f"config.json: {exc}") from exc

    def to_hugging_face(self) -> dict[str, Any]:
        """The values of a config.json from which `from_hugging_face` reads this again."""
        return {
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "multi_query_attention": True,
            **_FIXED,
            **attrs.asdict(self),
            "vocab_size": self.padded_vocab_size,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model: its Hugging Face name and shape."""
        hidden, ffn = self.hidden_size, self.ffn_hidden_size
        context = self.num_attention_heads * self.kv_channels
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.embedding.word_embeddings.weight": (self.padded_vocab_size, hidden)
        }
        for layer in range(self.num_layers):
            prefix = f"transformer.encoder.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (hidden,)
            shapes[prefix + "self_attention.query_key_value.weight"] = (self.qkv_size, hidden)
            shapes[prefix + "self_attention.query_key_value.bias"] = (self.qkv_size,)
            shapes[prefix + "self_attention.dense.weight"] = (hidden, context)
            shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
            shapes[prefix + "mlp.dense_h_to_4h.weight"] = (2 * ffn, hidden)
            shapes[prefix + "mlp.dense_4h_to_h.weight"] = (hidden, ffn)
        shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
        shapes["transformer.output_layer.weight"] = (self.padded_vocab_size, hidden)
        return shapes

    @property
    def parameter_count(self) -> int:
        """Number of weights (6,243,584,000 for glm3-6b)."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for dimension in shape:
                size *= dimension
            total += size
        return total


# What every published ChatGLM2/3 has, and what the cells build.
_FIXED: Mapping[str, Any] = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
}

_REQUIRED = {
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "padded_vocab_size",
}

# Derived values that some checkpoints store; they are computed from the config instead.
IGNORED_TENSORS = ("rotary_pos_emb.inv_freq",)

PRESETS: Mapping[str, Glm3Config] = {
    "tiny": Glm3Config(
        num_layers=4,
        hidden_size=256,
        ffn_hidden_size=688,
        num_attention_heads=4,
        kv_channels=64,
        multi_query_group_num=2,
        padded_vocab_size=2048,
        seq_length=1024,
    ),
    "glm3-6b": Glm3Config(),
    "glm3-6b-32k": Glm3Config(seq_length=32768, rope_ratio=50.0),
    "glm3-6b-128k": Glm3Config(seq_length=131072, rope_ratio=500.0),
}
