"""From the name of a kind of tokenizer to what opens one."""

from __future__ import annotations

import sys

from glm3sdk.adapters.sentencepiece import SentencePieceTokenizer
from glm3sdk.hookspecs import RegisterTokenizer, TokenizerFactory, hookimpl
from glm3sdk.plugins import missing, plugin_manager, registered

DEFAULT_TOKENIZER = "sentencepiece"


@hookimpl
def glm3_register_tokenizers(register: RegisterTokenizer) -> None:
    """Register the tokenizer that ships with the SDK, as any plugin would."""
    register(DEFAULT_TOKENIZER, SentencePieceTokenizer)


def tokenizer_factory(name: str) -> TokenizerFactory:
    """What opens a tokenizer of that kind.

    Raises:
        UnknownNameError: no tokenizer goes by that name.
        PluginError: two plugins register one name, or one that may have it cannot be used.
    """
    manager = plugin_manager([sys.modules[__name__]])
    factories: dict[str, TokenizerFactory] = registered(
        manager, "glm3_register_tokenizers", "tokenizer"
    )
    if name not in factories:
        raise missing(manager, "tokenizer", name, factories)
    return factories[name]
