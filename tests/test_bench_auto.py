"""What `bench.auto` says of its figures."""

import doctest

import bench.auto


def test_the_lower_bound_is_that_of_the_median() -> None:
    result = doctest.testmod(bench.auto)
    assert result.attempted > 0
    assert result.failed == 0
    assert bench.auto.lower_bound([1.0] * 5) is None
