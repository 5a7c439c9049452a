"""Iterating ahead in a thread changes nothing but the time it takes."""

import threading

import pytest

from adrec.inference.ahead import ahead


def test_items_come_in_order_and_no_more_than_depth_are_made_early():
    made = []

    def numbers():
        for number in range(20):
            made.append(number)
            yield number

    for asked, number in enumerate(ahead(numbers(), depth=2)):
        assert number == asked
        assert len(made) <= asked + 1 + 2 + 1  # what was taken, what lies ready, what is in progress


def test_a_fault_comes_out_after_the_items_before_it():
    def numbers():
        yield 1
        raise ValueError("broken")

    items = ahead(numbers())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_dropping_it_ends_its_thread():
    before = threading.active_count()

    def endless():
        while True:
            yield 0

    items = ahead(endless())
    next(items)
    items.close()
    assert threading.active_count() == before


def test_it_may_be_nested_and_empty():
    assert list(ahead(ahead(ahead(range(5))))) == [0, 1, 2, 3, 4]
    assert list(ahead([])) == []
