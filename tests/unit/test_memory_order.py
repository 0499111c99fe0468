"""The keys of the memory store in their order, and entries that leave it when they leave the store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carteiro.backends.memory import order
from carteiro.backends.memory.entries import Entries
from carteiro.backends.memory.order import Order
from carteiro.message import Write
from carteiro.testing.clock import VirtualClock

keys = st.text("ab", max_size=4)


@pytest.fixture(autouse=True, scope="module")
def short_runs():
    """So that few keys make and empty many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_RUN", 4)
        yield


@given(st.lists(st.tuples(keys, keys)))
def test_keys_that_come_and_go_are_found_in_order_from_any_key_on(steps: list[tuple[str, str]]):
    ordered, there = Order(), set[str]()
    for key, since in steps:
        if key in there:
            there.remove(key)
            ordered.remove(key)
        else:
            there.add(key)
            ordered.add(key)
        assert list(ordered.since(since)) == sorted(one for one in there if one >= since)


def scan(entries: Entries) -> list[tuple[str, bytes]]:
    return [(key, entry.value) for key, entry in entries.scan("", None)]


def test_writes_that_are_taken_back_leave_the_order_as_it_was():
    entries = Entries(VirtualClock())
    entries.write_all([Write("b", b"1"), Write("c", b"1")])

    assert not entries.write_all([Write("a", b"2"), Write("b", None), Write("c", b"2"), Write("c", b"3", expect=0)])

    assert scan(entries) == [("b", b"1"), ("c", b"1")]


def test_an_entry_that_expired_is_found_again_once_it_is_written_again():
    clock = VirtualClock()
    entries = Entries(clock)
    entries.write_all([Write("a", b"1", ttl=10), Write("b", b"1")])

    clock.advance_to(clock.time() + 10)
    assert scan(entries) == [("b", b"1")]
    entries.write(Write("a", b"2"))
    assert scan(entries) == [("a", b"2"), ("b", b"1")]
