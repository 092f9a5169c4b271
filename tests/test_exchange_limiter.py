"""The window of a stream against a plain model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.exchange.limiter import Window

events = st.lists(st.one_of(st.integers(0, 50), st.integers(1, 4).map(lambda count: -count)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), events)
def test_window(messages: int, volume: int, events: list[int]) -> None:
    """At least one message always fits; beyond that neither the count nor, but for the last message, the volume is exceeded."""
    window, under_way = Window(messages, volume), list[int]()
    for event in events:
        if event >= 0:
            assert window.room == (not under_way or (len(under_way) < messages and sum(under_way) < volume))
            if window.room:
                window.sent(event)
                under_way.append(event)
        else:
            window.acknowledged(-event)
            del under_way[:-event]
        assert len(under_way) <= messages
        assert sum(under_way[:-1]) < max(volume, 1)
        assert window.bytes == sum(under_way)


def test_one_message_of_any_size_fits() -> None:
    window = Window(messages=8, volume=100)
    assert window.room
    window.sent(10_000)
    assert not window.room
    window.acknowledged(1)
    assert window.room and window.bytes == 0


def test_acknowledging_more_than_was_sent_is_no_credit() -> None:
    window = Window(messages=2, volume=100)
    window.sent(1)
    window.acknowledged(5)
    window.sent(1)
    window.sent(1)
    assert not window.room
