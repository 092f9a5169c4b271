"""What every store must do. Run each of `CHECKS` with a fresh, empty store::

@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_my_store(check):
    check(MyStore(...))
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flowstate.store import Store


def creates_once(store: Store) -> None:
    """The first create wins; the others are told so and change nothing."""
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert not store.create("a/b.json", b"first")
    assert store.read("a/b.json") == b"first"


def has_one_winner(store: Store) -> None:
    """Of many that create at once, one wins, and its bytes are there."""
    with ThreadPoolExecutor(8) as pool:
        for round_number in range(5):
            name = f"race/{round_number}"
            won = list(pool.map(lambda number, name=name: store.create(name, b"%d" % number * 1000), range(8)))
            assert won.count(True) == 1
            assert store.read(name) == b"%d" % won.index(True) * 1000


def reads_ranges(store: Store) -> None:
    """Half-open ranges, cut off at the end of the object."""
    data = bytes(range(256)) * 40
    assert store.create("ranges", data)
    for start, end in [
        (None, None),
        (0, 10),
        (10, 300),
        (10_000, 10_240),
        (10_000, 20_000),
        (5, 5),
        (5, None),
        (None, 7),
    ]:
        assert store.read("ranges", start, end) == data[start:end], (start, end)
    assert store.read("ranges", 10_240, 10_250) == b""
    assert store.read("ranges", 20_000, 20_010) == b""


def joins_pieces(store: Store) -> None:
    """Several buffers become one object; none become an empty one."""
    assert store.create("pieces", [b"ab", memoryview(b"cd"), bytearray(b"ef"), b""])
    assert store.read("pieces") == b"abcdef"
    assert store.create("empty", b"")
    assert store.read("empty") == b""
    assert store.exists("empty")
    assert not store.create("empty", b"full")


def knows_what_is_absent(store: Store) -> None:
    """Reading raises FileNotFoundError; a folder is no object."""
    store.create("folder/object", b"x")
    for path in ("nothing", "nothing/at/all", "folder/other", "folder", "folder/object/below"):
        assert not store.exists(path), path
        try:
            store.read(path)
        except FileNotFoundError:
            continue
        raise AssertionError(f"{path} was read")


def lists_names(store: Store) -> None:
    """Names directly below, objects and folders, sorted; a prefix is a whole folder name."""
    for path in ("list/b", "list/a", "list/sub/x", "list/sub/y", "listing/z", "c d%2F=,@é"):
        assert store.create(path, b"")
    assert store.list("list") == ["a", "b", "sub"]
    assert store.list("list/") == ["a", "b", "sub"]
    assert store.list("list/sub") == ["x", "y"]
    assert store.list("li") == []
    assert store.list("nothing/here") == []
    assert store.list() == ["c d%2F=,@é", "list", "listing"]


def lists_many(store: Store) -> None:
    """More names than one page of an object store's answer."""
    names = [f"{number:05d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: store.create(f"many/{name}", b""), names))
    assert store.list("many") == names


def deletes(store: Store) -> None:
    """Deleting is idempotent; a name may then be created again, and is seen at once."""
    assert store.create("d/one", b"1")
    store.delete("d/one")
    store.delete("d/one")
    store.delete("never/was")
    assert not store.exists("d/one")
    assert store.list("d") == []
    assert store.create("d/one", b"2")
    assert store.read("d/one") == b"2"
    assert store.list("d") == ["one"]


def holds_large_objects(store: Store) -> None:
    """12 MB, whole."""
    piece = bytes(range(256)) * 4096
    assert store.create("large", [piece] * 12)
    assert store.read("large", 11 << 20, (11 << 20) + 5) == piece[:5]
    assert len(store.read("large")) == 12 << 20


def survives_pickling(store: Store) -> None:
    """A copy is the same place."""
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.create("pickled", b"1")
    assert not store.create("pickled", b"2")


def passes_its_probe(store: Store) -> None:
    """The probe leaves nothing behind and may be repeated, also by several at once."""
    store.probe()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: store.probe(), range(3)))
    assert store.list() == []


CHECKS: tuple[Callable[[Store], None], ...] = (
    creates_once,
    has_one_winner,
    reads_ranges,
    joins_pieces,
    knows_what_is_absent,
    lists_names,
    lists_many,
    deletes,
    holds_large_objects,
    survives_pickling,
    passes_its_probe,
)
