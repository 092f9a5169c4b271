"""Where a job was last said to be: the newest word stands, whoever speaks late."""

from __future__ import annotations

import json

from flowstate.snapshot.beacon import Beacon
from flowstate.snapshot.chain import Chain
from flowstate.store import Store


def directory(version: int, name: str = "") -> str:
    return json.dumps({"version": version, "name": name})


def test_a_run_that_was_replaced_does_not_speak_last() -> None:
    beacon = Beacon(Store.open("memory://beacon-late"))
    assert beacon.find() is None
    beacon.announce(directory(1 << 32))
    beacon.announce(directory(2 << 32))
    beacon.announce(directory((1 << 32) + 5))
    assert beacon.find() == directory(2 << 32)
    beacon.announce(directory(2 << 32, "again"))
    assert beacon.find() == directory(2 << 32, "again")


def test_two_who_announce_at_once(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The one that comes second to the same version announces all the same."""
    store = Store.open("memory://beacon-race")
    beacon, append, others = Beacon(store), Chain.append, [directory(1), directory(2)]

    def overtaken(chain: Chain, version: int, entry: dict[str, str]) -> bool:
        if others:
            append(chain, version, {"directory": others.pop()})
        return append(chain, version, entry)

    monkeypatch.setattr(Chain, "append", overtaken)
    beacon.announce(directory(3))
    assert beacon.find() == directory(3) and not others


def test_a_damaged_word_is_spoken_over() -> None:
    store = Store.open("memory://beacon-damaged")
    beacon = Beacon(store)
    beacon.announce(directory(1))
    for name in (beacon.chain.name(1), beacon.chain.copy_name(1)):
        store.delete(name)
        store.create(name, b"nonsense")
    beacon.announce(directory(2))
    assert beacon.find() == directory(2)
