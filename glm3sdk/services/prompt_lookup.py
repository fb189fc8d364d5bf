"""Guesses of what comes next, from what was written before: prompt-lookup decoding.

A runtime reads a few tokens in little more than the time of one, because that time goes into
reading the weights. So guessed tokens are read with the last one, each is chosen as ever from
the logits before it, and reading goes on behind the last guess that was chosen (Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Iterable

# The longest run of last tokens that is looked for; then shorter ones, down to one token.
_LONGEST = 3
# Few guesses are nearly free; more are made where the last ones were right.
_FIRST_GUESSES = 3
# One equal token says little: fewer guesses, and none after so many wrong ones in a row.
_GUESSES_AFTER_ONE = 2
_WRONG_AFTER_ONE = 2


class PromptLookup:
    """Guesses that a text goes on as it did where its last tokens stood before.

    Args:
        most: the most tokens to guess at once, at least 1.
        text: the tokens so far.
    """

    def __init__(self, most: int, text: Iterable[int]) -> None:
        self._most = most
        self._size = min(_FIRST_GUESSES, most)
        self._wrong = 0
        self._text: list[int] = []
        # From a run of tokens to where the text went on behind it, the last time.
        self._places: dict[tuple[int, ...], int] = {}
        self.extend(text)

    @property
    def length(self) -> int:
        """Tokens that it knows."""
        return len(self._text)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Take what was written."""
        text, places = self._text, self._places
        for token_id in token_ids:
            place = len(text)
            for length in range(1, min(_LONGEST, place) + 1):
                places[tuple(text[-length:])] = place
            text.append(token_id)

    def guess(self) -> list[int]:
        """The tokens that may come next; none where the last token is new."""
        text = self._text
        shortest = 1 if self._wrong < _WRONG_AFTER_ONE else 2
        for length in range(min(_LONGEST, len(text)), shortest - 1, -1):
            place = self._places.get(tuple(text[-length:]))
            if place is not None:
                size = self._size if length > 1 else min(self._size, _GUESSES_AFTER_ONE)
                # What ends with its own beginning is guessed to go round.
                period = len(text) - place
                return [text[place + step % period] for step in range(size)]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Guess more, or fewer, after so many guesses of which so many were right."""
        self._wrong = 0 if right else self._wrong + 1
        wanted = 2 * right + 1 if right == guessed else right
        self._size = min(max(wanted, _FIRST_GUESSES), self._most)
