"""Patterns of numbers within bounds, by their decimal digits."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

# So many digits a float tells apart: what lies inside the bounds as text does so as a value.
MOST_DIGITS = 15
FRACTION_DIGITS = 6

_LIMIT = 10**MOST_DIGITS - 1


def integer_bounds(
    low: Decimal | None, high: Decimal | None, *, above: bool, below: bool
) -> tuple[int, int]:
    """The least and the greatest integer between bounds, of at most 15 digits.

    Args:
        low: lower bound, or None.
        high: upper bound, or None.
        above: whether the lower bound itself is outside.
        below: whether the upper bound itself is outside.
    """
    return _scaled(low, high, above=above, below=below, digits=0)


def number_pattern(
    low: Decimal | None, high: Decimal | None, *, above: bool, below: bool, integer: bool
) -> str | None:
    """A pattern of the numbers between bounds; arguments as `integer_bounds`.

    Args:
        low: lower bound.
        high: upper bound.
        above: whether the lower bound itself is outside.
        below: whether the upper bound itself is outside.
        integer: whether fractions are excluded; else they have at most 6 digits.

    Returns:
        None where there is no such number.
    """
    options: list[str] = []
    for digits in range(1 if integer else FRACTION_DIGITS + 1):
        least, greatest = _scaled(low, high, above=above, below=below, digits=digits)
        if greatest >= 0:
            options += _between(max(least, 0), greatest, digits)
        if least < 0:
            options += (f"-{each}" for each in _between(max(-greatest, 1), -least, digits))
    return "|".join(options) or None


def _scaled(
    low: Decimal | None, high: Decimal | None, *, above: bool, below: bool, digits: int
) -> tuple[int, int]:
    """Bounds in units of the last of so many fraction digits."""
    least, greatest = -_LIMIT, _LIMIT
    if low is not None:
        unit = int(low.scaleb(digits).to_integral_value(ROUND_CEILING))
        least = max(least, unit + (above and unit == low.scaleb(digits)))
    if high is not None:
        unit = int(high.scaleb(digits).to_integral_value(ROUND_FLOOR))
        greatest = min(greatest, unit - (below and unit == high.scaleb(digits)))
    return least, greatest


def _between(low: int, high: int, fraction: int) -> Iterator[str]:
    """Patterns of the numbers low..high (from 0), whose last digits are a fraction."""
    for width in range(fraction + 1, MOST_DIGITS + 1):
        first = 0 if width == fraction + 1 else 10 ** (width - 1)
        least, greatest = max(low, first), min(high, 10**width - 1)
        if least <= greatest:
            for digits in _digits(f"{least:0{width}}", f"{greatest:0{width}}"):
                whole, rest = digits[: width - fraction], digits[width - fraction :]
                yield _joined(whole) + (rf"\.{_joined(rest)}" if rest else "")


def _digits(low: str, high: str) -> Iterator[list[str]]:
    """Digit classes that together match the texts low..high, all of one length."""
    if not low:
        yield []
        return
    if low[0] == high[0]:
        for rest in _digits(low[1:], high[1:]):
            yield [low[0], *rest]
        return
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    first, last = int(low[0]), int(high[0])
    if low[1:] != zeros:
        for rest in _digits(low[1:], nines):
            yield [low[0], *rest]
        first += 1
    if high[1:] != nines:
        for rest in _digits(zeros, high[1:]):
            yield [high[0], *rest]
        last -= 1
    if first <= last:
        yield [f"[{first}-{last}]", *["[0-9]"] * (len(low) - 1)]


def _joined(digits: list[str]) -> str:
    """A run of equal classes as one with a count, so that a pattern stays short."""
    text, position = "", 0
    while position < len(digits):
        end = position
        while end < len(digits) and digits[end] == digits[position]:
            end += 1
        count = end - position
        text += digits[position] + (f"{{{count}}}" if count > 1 else "")
        position = end
    return text
