import time

import pytest

from cloudreg.registration.threads import together


def test_results_come_in_the_order_of_the_items():
    def late(seconds, value):
        time.sleep(seconds)
        return value

    assert together(late, (0.05, 0.0, 0.02), "abc") == ["a", "b", "c"]


def test_an_error_is_raised_only_when_nothing_works_any_more():
    ended = []

    def work(number):
        if number == 0:
            raise OSError("first of all")
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(OSError, match="first of all"):
        together(work, range(5))
    assert sorted(ended) == [1, 2, 3, 4]
