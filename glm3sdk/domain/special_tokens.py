"""The nine special tokens of ChatGLM3, a type of their own: text never becomes one."""

from __future__ import annotations

from enum import Enum


class SpecialToken(Enum):
    """A special token, by the name that the published tokenizer gives it.

    The order is that of the ids: a tokenizer file with N pieces has them at N..N+8
    (64789..64797 for the published file).
    """

    MASK = "[MASK]"
    GMASK = "[gMASK]"
    SMASK = "[sMASK]"
    SOP = "sop"
    EOP = "eop"
    SYSTEM = "<|system|>"
    USER = "<|user|>"
    ASSISTANT = "<|assistant|>"
    OBSERVATION = "<|observation|>"
