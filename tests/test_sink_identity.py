"""Who a sink is to the other side: the same for ever, whichever one object is lost."""

from __future__ import annotations

from itertools import count

import pytest

from flowstate.errors import CorruptData
from flowstate.sink.identity import identity
from flowstate.store import Store

PATHS = ["sinks/0003/identity", "sinks/0003/identity.copy"]
NUMBERS = count()


@pytest.fixture
def store() -> Store:
    return Store.open(f"memory://identity-{next(NUMBERS)}")


def write(store: Store, path: str, data: bytes | None) -> None:
    store.delete(path)
    if data is not None:
        store.create(path, data)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("data", [None, b"", b"\xff" * 16])
def test_one_object_that_is_lost_or_damaged_changes_nothing(store: Store, path: str, data: bytes | None) -> None:
    name = identity(store, 3)
    assert identity(store, 3) == name != identity(store, 4)
    write(store, path, data)
    assert identity(store, 3) == name
    for each in PATHS:
        if data is None or each != path:
            assert store.read(each).decode() == name


@pytest.mark.parametrize("path", PATHS)
def test_two_that_differ_are_an_error(store: Store, path: str) -> None:
    identity(store, 3)
    write(store, path, b"0123456789abcdef")
    with pytest.raises(CorruptData, match="from a backup"):
        identity(store, 3)


def test_one_from_before_there_were_copies(store: Store) -> None:
    store.create(PATHS[0], b"0123456789abcdef")
    assert identity(store, 3) == "0123456789abcdef" == store.read(PATHS[1]).decode()
