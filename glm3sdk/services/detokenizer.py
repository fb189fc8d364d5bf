"""Token ids to text as they arrive, never half a character."""

from __future__ import annotations

from glm3sdk.ports.tokenizer import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"

# An unfinished UTF-8 sequence is at most three bytes, so the three last U+FFFD may still
# turn into a character; whatever stands before them is final.
_MOST_UNFINISHED = 3

# Three bytes after a cut, a decoder that starts there agrees with one that came from
# before. The text held back (three U+FFFD, at most three bytes each) must lie beyond
# that, and the window is cut only when it is twice as long, so each id is decoded in a
# bounded number of bounded windows.
_KEPT = 16
_LONGEST = 2 * _KEPT


class Detokenizer:
    """Decodes one sequence incrementally: the pieces joined equal `tokenizer.decode(ids)`.

    A character whose bytes arrive in several tokens is held back until it is whole.
    Bytes that turn out to be broken come as U+FFFD, as the tokenizer decodes them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._text = ""
        self._shown = 0

    def push(self, token_id: int) -> str:
        """Take one more id and return the text that it completes, which may be "".

        Raises:
            SlotError: a negative id; the text so far is unharmed.
        """
        # Decoding a window rather than the id keeps its leading space, which a tokenizer
        # with a dummy prefix strips from the first piece that it is given.
        text = self._tokenizer.decode([*self._window, token_id])
        if text == self._text and not self._tokenizer.decode([token_id, token_id]):
            return self.finish()
        self._window.append(token_id)
        self._text = text
        end = max(self._shown, len(text) - _unfinished(text))
        shown, self._shown = self._shown, end
        if len(self._window) > _LONGEST:
            self._forget_the_beginning()
        return text[shown:end]

    def finish(self) -> str:
        """Return what was held back; the next id begins a text of its own."""
        rest = self._text[self._shown :]
        self._window = []
        self._text = ""
        self._shown = 0
        return rest

    def _forget_the_beginning(self) -> None:
        held = len(self._text) - self._shown
        self._window = self._window[-_KEPT:]
        self._text = self._tokenizer.decode(self._window)
        self._shown = len(self._text) - held


def _unfinished(text: str) -> int:
    tail = text[-_MOST_UNFINISHED:]
    return len(tail) - len(tail.rstrip(_BROKEN))
