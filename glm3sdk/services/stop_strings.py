"""Strings that end a reply, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from glm3sdk.errors import InvalidGenerationConfigError


class StopStrings:
    """Passes text on up to the first stop string and drops the rest.

    However the text is cut into pieces, the result is that of searching the whole text:
    the stop string that begins first wins, the shortest of those that begin together.

    Attributes:
        matched: the stop string that was found, or None so far.

    Raises:
        InvalidGenerationConfigError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InvalidGenerationConfigError(
                f"a stop string must not be empty, as in {list(stops)!r}; leave it out"
            )
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take more text and return what can be shown: no stop string can begin in it."""
        if self.matched is not None:
            return ""
        self._held += text
        found = self._find()
        end = found[0] if found else len(self._held)
        # A stop string that may begin earlier than the one found is awaited first.
        for start in range(max(0, len(self._held) - self._longest + 1), end):
            tail = self._held[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                shown, self._held = self._held[:start], tail
                return shown
        return self._release(found)

    def finish(self) -> str:
        """Return what was held back, as no more text will come; may still set `matched`."""
        return self._release(self._find())

    def _find(self) -> tuple[int, int, str] | None:
        places = ((self._held.find(stop), len(stop), stop) for stop in self._stops)
        return min((place for place in places if place[0] >= 0), default=None)

    def _release(self, found: tuple[int, int, str] | None) -> str:
        shown, self._held = self._held, ""
        if found is None:
            return shown
        self.matched = found[2]
        return shown[: found[0]]
