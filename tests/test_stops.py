"""Stop strings across any borders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.stops import StopMatcher

ALPHABET = st.lists(st.sampled_from(b"ab\n"), max_size=40).map(bytes)
SMALL_STOPS = st.lists(
    st.lists(st.sampled_from(b"ab\n"), min_size=1, max_size=4).map(bytes), max_size=4
)


def _expected(text: bytes, stops: list[bytes], least: int) -> tuple[bytes, bool]:
    for end in range(len(text) + 1):
        whole = [s for s in stops if text[:end].endswith(s) and end - len(s) >= least]
        if whole:
            return text[: end - max(map(len, whole))], True
    return text, False


@given(
    text=ALPHABET,
    stops=SMALL_STOPS,
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=20),
    least=st.integers(0, 6),
)
def test_any_cutting_gives_what_the_whole_text_gives(
    text: bytes, stops: list[bytes], cuts: list[int], least: int
) -> None:
    matcher = StopMatcher(stops, least)
    output, stopped, rest, turn = b"", False, text, 0
    while rest and not stopped:
        size = cuts[turn % len(cuts)]
        part, rest, turn = rest[:size], rest[size:], turn + 1
        fresh, stopped = matcher.feed(part)
        output += fresh
        # what was released is never part of a stop string
        assert _expected(text, stops, least)[0].startswith(output)
    if not stopped:
        output += matcher.flush()
    assert (output, stopped) == _expected(text, stops, least)


def test_the_example_in_the_docstring() -> None:
    matcher = StopMatcher([b"END"])
    assert (matcher.feed(b"the E"), matcher.feed(b"NDING")) == ((b"the ", False), (b"", True))
    assert matcher.surplus == 3


def test_of_two_complete_at_one_place_the_longer_counts() -> None:
    matcher = StopMatcher([b"\n", b";\n"])
    assert matcher.feed(b"a;\nb") == (b"a", True)
    assert matcher.surplus == 1


@given(
    text=ALPHABET,
    stops=SMALL_STOPS,
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=20),
    least=st.integers(0, 6),
)
def test_a_match_that_is_included_follows_what_comes_before_it(
    text: bytes, stops: list[bytes], cuts: list[int], least: int
) -> None:
    # of stops that are as long as one another, so that the same matches count
    stops = [stop for stop in stops if len(stop) == len(stops[0])]
    size = len(stops[0]) if stops else 0
    matcher = StopMatcher(stops, least)
    including = StopMatcher(stops, least + size, include=True)
    without, with_it, place, stopped = b"", b"", 0, False
    for cut in cuts:
        part, place = text[place : place + cut], place + cut
        output, found = matcher.feed(part)
        without += output
        output, stopped = including.feed(part)
        with_it += output
        assert stopped == found
        if stopped:
            break
    if stopped:
        assert with_it in {without + stop for stop in stops}
        assert text.startswith(with_it)
    else:
        assert with_it == without
    assert including.surplus == matcher.surplus


def test_of_a_match_that_is_included_its_own_bytes_count() -> None:
    matcher = StopMatcher([b"contex"], least=6, include=True)
    assert [matcher.feed(b"con"), matcher.feed(b"text")] == [(b"", False), (b"contex", True)]
    matcher = StopMatcher([b"contex"], least=7, include=True)
    assert matcher.feed(b"context") == (b"context", False)


def test_nothing_is_held_that_cannot_begin_a_stop_string() -> None:
    matcher = StopMatcher([b"###"])
    assert matcher.feed(b"text #") == (b"text ", False)
    assert matcher.feed(b"1") == (b"#1", False)


def test_without_stop_strings_all_passes() -> None:
    matcher = StopMatcher([])
    assert matcher.feed(b"abc") == (b"abc", False)
    assert matcher.flush() == b""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="no bytes"):
        StopMatcher([b""])
