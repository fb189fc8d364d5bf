"""A model that trains in seconds and takes the bundled tokenizer."""

from __future__ import annotations

from glm3sdk import Glm3Config

SMALL = Glm3Config(
    num_layers=1,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=2,
    kv_channels=16,
    multi_query_group_num=1,
    padded_vocab_size=2048,
    seq_length=1024,
)
