"""Cutting Chinese text into words with jieba, as published scores do."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from glm3sdk.errors import BackendUnavailableError


def jieba_words() -> Callable[[str], list[str]]:
    """Load jieba's dictionary (about a second) and return the function that cuts a text.

    The words, spaces and line breaks among them, joined give the text again.

    Raises:
        BackendUnavailableError: jieba is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Its source is from before Python warned of "\s" in a plain string.
            warnings.simplefilter("ignore")
            import jieba
    except ImportError as exc:
        raise BackendUnavailableError(
            "text scores need jieba, which cuts text into words; "
            "install it with: pip install 'glm3sdk[evaluate]'"
        ) from exc
    tokenizer = jieba.Tokenizer()
    # What `initialize` does, without its cache: a file of one fixed name in the common
    # temporary folder, where anybody may have put another that is then unmarshalled.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True

    def cut(text: str) -> list[str]:
        return list(tokenizer.cut(text))

    return cut
