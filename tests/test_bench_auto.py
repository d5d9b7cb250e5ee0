"""What `bench.auto` says of its figures."""

import doctest

import bench.auto


def test_the_lower_bound_is_that_of_the_median() -> None:
    result = doctest.testmod(bench.auto)
    assert result.attempted > 0
    assert result.failed == 0
    assert bench.auto.lower_bound([1.0] * 5) is None


def test_others_are_held_against_the_turns_that_they_were_asked_in() -> None:
    """Base and auto slow down by half from the second turn on; one draft is asked in the first and
    the third alone."""
    seconds = {
        "base": [2.0, 3.0, 3.0, 3.0],
        "auto": [1.0, 1.5, 2.0, 1.5],
        "no prophet": [1.0, 1.5, 1.5, 1.5],
        "1": [1.0, 2.0],
    }
    row = bench.auto._row(seconds, {name: [1.0] for name in seconds}, 6, every=2)
    assert row["ratio"] == 2.0
    assert row["base_to_no_prophet"] == 0.5
    assert (row["best_fixed"], row["auto_to_best_fixed"]) == ("1", 1.0)
    assert row["base_bytes_per_second"] == 2
    # of the same turns
    assert row["bytes_per_second"] == {"base": 2, "auto": 4, "no prophet": 5, "1": 4}
