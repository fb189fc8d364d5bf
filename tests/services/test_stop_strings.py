from __future__ import annotations

import pytest

from glm3sdk.errors import InvalidGenerationConfigError
from glm3sdk.services.stop_strings import StopStrings


def test_text_without_a_stop_string_passes_at_once() -> None:
    stops = StopStrings(["END"])
    assert stops.push("hello") == "hello"
    assert stops.finish() == ""
    assert stops.matched is None


def test_text_passes_when_there_are_no_stop_strings() -> None:
    stops = StopStrings([])
    assert stops.push("hello") == "hello"
    assert stops.finish() == ""


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["END"])
    assert stops.push("the EN") == "the "
    assert stops.push("G") == "ENG"
    assert stops.push("E") == ""
    assert stops.finish() == "E"
    assert stops.matched is None


def test_text_from_the_match_on_is_dropped() -> None:
    stops = StopStrings(["END"])
    assert [stops.push(text) for text in ("one E", "ND two", " three")] == ["one ", "", ""]
    assert stops.matched == "END"
    assert stops.finish() == ""


def test_a_new_beginning_inside_a_failed_one_is_seen() -> None:
    stops = StopStrings(["aab"])
    assert "".join(stops.push(letter) for letter in "aaab!") == "a"
    assert stops.matched == "aab"


def test_the_stop_string_that_begins_first_wins() -> None:
    stops = StopStrings(["bcd", "abcde"])
    assert stops.push("xabcd") == "x"
    assert stops.matched is None
    assert stops.push("e") == ""
    assert stops.matched == "abcde"


def test_the_later_one_wins_when_the_earlier_one_fails() -> None:
    stops = StopStrings(["bcd", "abcde"])
    assert stops.push("xabcd") + stops.push("!") == "xa"
    assert stops.matched == "bcd"


def test_the_later_one_wins_when_the_text_ends() -> None:
    stops = StopStrings(["bcd", "abcde"])
    assert stops.push("xabcd") == "x"
    assert stops.finish() == "a"
    assert stops.matched == "bcd"


def test_of_two_that_begin_together_the_shorter_stops_at_once() -> None:
    stops = StopStrings(["ENDING", "END"])
    assert stops.push("x ENDING") == "x "
    assert stops.matched == "END"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidGenerationConfigError, match="leave it out"):
        StopStrings(["END", ""])
