"""The reader against worker processes: owners, moves, crashes, threads; keys as people write them; a view as a Mapping."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_memory import GROUPS, SEED, Worker, directory_of, partitions_of
from flight_tables import FEBRUARY, JANUARY, MARCH, TABLES, VIEWS, ordered

from flowstate.errors import FlowstateError, InvalidFlow, Moved, Unavailable
from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness
from flowstate_flight import FlightReader, FlightService, ViewMapping, connect
from flowstate_flight.keys import key_batch

COUNT = 4
SUBTOTALS = TABLES["subtotals"]


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    made = [Worker("billing", VIEWS, TABLES, COUNT, serves) for serves in ([0, 1], [2, 3])]
    directory = directory_of("billing", VIEWS, [made[each // 2].location for each in range(COUNT)])
    for worker in made:
        worker.set_directory(directory)
    yield made
    for worker in made:
        worker.close()


@pytest.fixture
def reader(workers: list[Worker]) -> Iterator[FlightReader]:
    with connect(workers[1].location) as reader:
        yield reader


@pytest.fixture
def here() -> Iterator[tuple[FlightService, list[Any], FlightReader]]:
    """A service in this process, whose partitions a test can look into."""
    with FlightService() as service:
        partitions = partitions_of("billing", VIEWS, TABLES, COUNT)
        for each in partitions:
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * COUNT))
        with connect(service.location, patience=4.0) as reader:
            yield service, partitions, reader


def rows_of(*names: str | None) -> list[dict[str, object]]:
    return sorted((row for row in SUBTOTALS.to_pylist() if row["customer"] in names), key=repr)


def test_lookups(reader: FlightReader) -> None:
    assert ordered(reader.lookup("subtotals", ("customer-3", "b"))) == rows_of("customer-3")
    assert ordered(reader.lookup("subtotals", (None, "a"))) == rows_of(None)
    assert reader.lookup("subtotals", ("customer-3", "a")).num_rows == 0
    many: list[tuple[str | None, str]] = [(f"customer-{each}", "ab"[each % 2]) for each in range(40)]
    wanted = rows_of(*(name for name, _ in many), None)
    assert ordered(reader.lookup("subtotals", [*many, *many[:5], (None, "a"), ("nobody", "a")])) == wanted
    names, kinds = zip(*many, strict=True)
    assert ordered(reader.lookup("subtotals", {"customer": list(names), "kind": list(kinds)})) == rows_of(*names)
    assert ordered(reader.lookup("subtotals", {"kind": "b", "customer": "customer-3"})) == rows_of("customer-3")
    batch = pa.record_batch({"customer": pa.array(names, pa.large_string()), "kind": kinds})
    assert ordered(reader.lookup("subtotals", batch)) == rows_of(*names)
    [row] = reader.lookup("subtotals", ("customer-3", "b", FEBRUARY), columns=["total", "month"]).to_pylist()
    assert row == {"total": Decimal("0.32"), "month": FEBRUARY}
    assert reader.lookup("subtotals", []).schema == SUBTOTALS.schema


def test_only_owners_are_asked(here: Any) -> None:
    _, partitions, reader = here
    keys = pa.record_batch({"customer": ["customer-3"], "kind": ["b"]})
    owner = owner_of_groups(key_groups(route_hashes(keys.columns, SEED), GROUPS), GROUPS, COUNT)[0]
    answer = Answer.of(reader.lookup("subtotals", keys).schema)
    assert answer is not None
    assert [part.partition for part in answer.parts] == [owner]
    condition = (pc.field("customer") == "customer-3") & (pc.field("kind") == "b") & (pc.field("events") > 0)
    got = reader.scan("subtotals", filter=condition)
    assert ordered(got) == rows_of("customer-3")
    answer = Answer.of(got.schema)
    assert answer is not None
    assert [part.partition for part in answer.parts] == [owner]
    assert not any(each.scanned for each in partitions)  # the index found it


def test_scans(reader: FlightReader) -> None:
    for name, table in TABLES.items():
        assert ordered(reader.scan(name)) == ordered(table)
    condition = (pc.field("events") > 50) | pc.field("customer").is_null()
    got = reader.scan("subtotals", ["kind", "total"], condition)
    assert ordered(got) == ordered(SUBTOTALS.filter(condition).select(["kind", "total"]))
    # this one has no exact form in Substrait (a microsecond where the column has milliseconds), so it is applied here
    late = pa.scalar(JANUARY + dt.timedelta(microseconds=1), pa.timestamp("us", "UTC"))
    assert reader.scan("subtotals", ["events"], pc.field("month") > late).num_rows == SUBTOTALS.num_rows // 2
    assert reader.scan("subtotals", ["events"], pc.field("month") > late, limit=7).num_rows == 7
    assert reader.scan("subtotals", limit=9).num_rows == 9
    assert reader.scan("subtotals", limit=0).num_rows == 0
    parts = [reader.scan("subtotals", partitions=[each]).num_rows for each in range(COUNT)]
    assert sum(parts) == SUBTOTALS.num_rows
    assert min(parts) > 0
    stream = reader.scan_reader("subtotals", ["events"])
    answer = Answer.of(stream.schema)
    assert answer is not None
    assert sorted(part.partition for part in answer.parts) == list(range(COUNT))
    assert answer.watermark == 5_000_000
    assert sorted(stream.read_all()["events"].to_pylist()) == sorted(SUBTOTALS["events"].to_pylist())


def test_a_cut_is_read_as_it_was(here: Any) -> None:
    _, partitions, reader = here
    for each in partitions:
        each.cuts[7] = dict(each.tables)
        each.tables["subtotals"] = each.tables["subtotals"].slice(0, 0)
    got = reader.scan("subtotals", fresh=Freshness(cut=7))
    assert ordered(got) == ordered(SUBTOTALS)
    answer = Answer.of(got.schema)
    assert answer is not None
    assert answer.consistent
    assert ordered(reader.lookup("subtotals", [("customer-3", "b"), (None, "a")], fresh=Freshness(cut=7))) == rows_of(
        "customer-3", None
    )
    assert len(ViewMapping(reader, "subtotals", Freshness(cut=7))) == 61
    assert len(ViewMapping(reader, "subtotals")) == 0
    with pytest.raises(InvalidFlow, match="cut is not kept cut=8"):
        reader.scan("subtotals", fresh=Freshness(cut=8))


def test_a_partition_that_moves_is_found_again(workers: list[Worker]) -> None:
    """Epoch and place change under a reader with open exchanges; it asks for the directory again."""
    first = Worker("billing", VIEWS, TABLES, COUNT, range(COUNT))
    second = Worker("billing", VIEWS, TABLES, COUNT, range(COUNT), epoch=2)
    try:
        for worker in (first, second):
            worker.set_directory(directory_of("billing", VIEWS, [first.location] * COUNT))
        with connect([first.location, second.location]) as reader:
            assert ordered(reader.lookup("subtotals", ("customer-3", "b"))) == rows_of("customer-3")
            moved = directory_of("billing", VIEWS, [second.location] * COUNT, version=2, epoch=2)
            second.set_directory(moved)
            first.kill()
            assert ordered(reader.lookup("subtotals", ("customer-3", "b"))) == rows_of("customer-3")
            assert ordered(reader.scan("subtotals")) == ordered(SUBTOTALS)
            assert reader.directory().version == 2
    finally:
        first.close()
        second.close()


def test_a_partition_that_is_away_is_waited_for_and_no_longer_than_that(here: Any) -> None:
    service, partitions, reader = here
    for each in partitions:
        each.loading = True
    arrived = threading.Timer(0.3, lambda: [setattr(each, "loading", False) for each in partitions])
    arrived.start()
    assert ordered(reader.scan("subtotals")) == ordered(SUBTOTALS)
    arrived.join()
    partitions[2].loading = True
    with pytest.raises(Unavailable, match=r"did not answer in time.*waited=4\.0") as error:
        reader.scan("subtotals")
    assert isinstance(error.value.__cause__, Unavailable)
    assert "loading its snapshot" in str(error.value.__cause__)
    service.unregister("billing", 2)
    with pytest.raises(Unavailable) as error:
        reader.scan("subtotals")
    assert isinstance(error.value.__cause__, Moved)


def test_an_epoch_that_changes_in_place_is_followed(here: Any) -> None:
    service, _, reader = here
    assert reader.lookup("subtotals", (None, "a")).num_rows == 2
    for each in partitions_of("billing", VIEWS, TABLES, COUNT, epoch=9):
        service.register(each)
    service.set_directory(directory_of("billing", VIEWS, [service.location] * COUNT, version=2, epoch=9))
    answer = Answer.of(reader.lookup("subtotals", (None, "a")).schema)
    assert answer is not None
    assert answer.parts[0].epoch == 9


def test_a_rescaled_job_is_asked_by_its_new_division(here: Any) -> None:
    service, _, reader = here
    assert reader.scan("subtotals").num_rows == SUBTOTALS.num_rows
    service.drop_job("billing")
    for each in partitions_of("billing", VIEWS, TABLES, 3, epoch=2):
        service.register(each)
    service.set_directory(directory_of("billing", VIEWS, [service.location] * 3, version=2, epoch=2))
    assert ordered(reader.scan("subtotals")) == ordered(SUBTOTALS)
    assert ordered(reader.lookup("subtotals", ("customer-3", "b"))) == rows_of("customer-3")


def test_a_server_that_hangs_is_given_up() -> None:
    """A partition that never answers: the exchange is cancelled when the time is over, and so is what is tried instead."""
    [partition] = partitions_of("billing", VIEWS, TABLES, 1)
    release = threading.Event()
    partition.lookup = lambda view, keys: release.wait(30)
    with FlightService() as service:
        service.register(partition)
        service.set_directory(directory_of("billing", VIEWS, [service.location]))
        reader = connect(service.location, patience=0.5, timeout=0.4)
        with reader, pytest.raises(Unavailable, match="did not answer in time"):
            reader.lookup("subtotals", ("customer-3", "b"))
        release.set()


def test_many_threads(reader: FlightReader) -> None:
    def look(number: int) -> bool:
        name, kind = f"customer-{number % 60}", "ab"[number % 2]
        if number % 20 == 0:
            return ordered(reader.scan("subtotals")) == ordered(SUBTOTALS)
        return ordered(reader.lookup("subtotals", (name, kind))) == rows_of(name)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(look, range(300)))


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match=r"address='grpc://127\.0\.0\.1:1'"):
        connect("127.0.0.1:1")
    with pytest.raises(InvalidFlow, match="no address"):
        connect("nonsense://x")
    with pytest.raises(InvalidFlow, match="at least one"):
        FlightReader([])


def test_another_hash_is_refused_before_it_finds_nothing(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service, _, _ = here
    monkeypatch.setattr("flowstate_flight.routing.hash_probe", lambda: "of another version")
    with pytest.raises(InvalidFlow, match="install the same version"):
        connect(service.location)


def test_a_closed_reader_says_so(workers: list[Worker]) -> None:
    reader = connect(workers[0].location)
    reader.lookup("subtotals", (None, "a"))
    routing = reader._routing
    reader.close()
    with pytest.raises(InvalidFlow, match="closed"):
        reader.lookup("subtotals", (None, "a"))
    with pytest.raises(InvalidFlow, match="closed"):  # another thread was about to look where partitions are
        routing.refresh(routing.current())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_child_is_refused_instead_of_hanging(workers: list[Worker]) -> None:
    program = f"""
import os, sys
from flowstate_flight import connect
from flowstate.errors import InvalidFlow
reader = connect({workers[0].location!r})
reader.lookup("subtotals", (None, "a"))
if os.fork() == 0:
    for ask in (lambda: reader.lookup("subtotals", (None, "a")), lambda: connect({workers[0].location!r})):
        try:
            ask()
        except InvalidFlow as error:
            print("refused", "fork" in str(error), flush=True)
    os._exit(0)
os.wait()
print(reader.lookup("subtotals", (None, "a")).num_rows, flush=True)
reader.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n")[:3] == ["refused True", "refused True", "2"], done.stderr


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("customer-3", "give 2 to 4 values for a key given=\\[1\\]"),
        (("customer-3", 5), "a value for 'kind' does not fit"),
        (("customer-3", "b", "2026-01"), "a value for 'month' does not fit"),
        (("customer-3", "b", JANUARY, FEBRUARY, 1), "give 2 to 4 values"),
        ({"customer": "customer-3"}, "without a gap missing=\\['kind'\\]"),
        ({"customer": "customer-3", "kind": "b", "month_end": MARCH}, "missing=\\['month'\\]"),
        ({"custmer": "customer-3", "kind": "b"}, "did you mean 'customer'"),
        ({"customer": ["a", "b"], "kind": ["a"]}, "unequal lengths"),
        ([("a", "b"), ("a",)], "give 2 to 4 values"),
    ],
)
def test_keys_that_do_not_fit(reader: FlightReader, key: Any, message: str) -> None:
    with pytest.raises(InvalidFlow, match=message) as error:
        reader.lookup("subtotals", key)
    if "unequal" not in message:
        assert "keyed by (customer: string, kind: string, month: timestamp[ms, tz=UTC]" in str(error.value)


def info_of(kind: pa.DataType) -> ViewInfo:
    return ViewInfo("v", pa.schema([pa.field("key", kind)]), "keyed", ("key",), ("key",))


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (pa.int32(), 5, 5),
        (pa.int8(), 300, None),
        (pa.int64(), 5.0, None),
        (pa.int64(), True, None),
        (pa.int64(), "5", None),
        (pa.uint8(), -1, None),
        (pa.float64(), 5, 5.0),
        (pa.bool_(), True, True),
        (pa.string(), None, None),
        (pa.decimal128(12, 2), Decimal("1.5"), Decimal("1.50")),
        (pa.decimal128(12, 2), Decimal("1.505"), None),
        (pa.date32(), dt.date(2026, 1, 1), dt.date(2026, 1, 1)),
        (pa.timestamp("us"), dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1)),
        (pa.timestamp("us"), JANUARY, None),
        (pa.timestamp("us", "Europe/Berlin"), dt.datetime(2026, 1, 1), None),
        (pa.timestamp("us", "UTC"), dt.datetime(2026, 1, 1), JANUARY),
        (pa.timestamp("ms", "UTC"), JANUARY + dt.timedelta(microseconds=1), None),
        (pa.binary(), b"ab", b"ab"),
    ],
)
def test_python_values_as_keys(kind: pa.DataType, value: Any, wanted: Any) -> None:
    if wanted is None and value is not None:
        with pytest.raises(InvalidFlow, match="does not fit"):
            key_batch(info_of(kind), value)
    else:
        assert key_batch(info_of(kind), value).column(0).to_pylist() == [wanted]


def test_mapping(reader: FlightReader) -> None:
    view = ViewMapping(reader, "subtotals")
    assert ordered(view["customer-3", "b"]) == rows_of("customer-3")
    assert view["customer-3", "b", JANUARY].num_rows == 1
    assert view["customer-3", "b", JANUARY, FEBRUARY].num_rows == 1
    with pytest.raises(KeyError, match="nobody"):
        view["nobody", "b"]
    assert view.get(("nobody", "b")) is None
    assert ("nobody", "b") not in view
    assert (None, "a") in view
    keys = list(view)
    assert len(view) == len(keys) == len(set(keys)) == 61
    assert all(view[key].num_rows == 2 for key in keys[:5])
    assert ordered(view.to_table(["total"])) == ordered(SUBTOTALS.select(["total"]))
    assert view.to_table(filter=pc.field("events") == 3).num_rows == 2
    assert view.schema == SUBTOTALS.schema
    assert repr(view) == (
        "<view 'subtotals' of job 'billing' keyed by (customer: string, kind: string, month: timestamp[ms, tz=UTC], "
        "month_end: timestamp[ms, tz=UTC]) -> (total: decimal128(12, 2), events: int64)>"
    )
    rows = ViewMapping(reader, "subtotals_late")
    assert rows.to_table().num_rows == 30
    for wrong in (lambda: rows["x"], lambda: len(rows), lambda: list(rows), lambda: view[[("customer-3", "b")]]):
        with pytest.raises(InvalidFlow):
            wrong()


def test_unknown_names(reader: FlightReader) -> None:
    for wrong, hint in (
        (lambda: reader.info("subtotal"), "did you mean 'subtotals'"),
        (lambda: reader.lookup("subtotal", "x"), "did you mean 'subtotals'"),
        (lambda: reader.scan("subtotals", ["totl"]), "did you mean 'total'"),
        (lambda: reader.scan("subtotals", filter=pc.field("x") == 1), "does not fit the columns"),
        (lambda: reader.scan("subtotals", filter=pc.field("kind") == 1), "does not fit the columns"),
        (lambda: reader.scan("subtotals", partitions=[7]), "no such partition"),
        (lambda: reader.scan("subtotals", []), "at least one name"),
        (lambda: reader.scan("subtotals", limit=-1), "not negative"),
    ):
        with pytest.raises(FlowstateError, match=hint):
            wrong()
    assert reader.views() == ["subtotals", "subtotals_late"]
