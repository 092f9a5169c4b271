"""The parts of the commands that ask, by themselves: places, keys, freshness, rows as text, credentials and trouble."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from asking import ask, ask_all
from certificates import Authority
from guarded import Guarded, token

import flowstate as fs
from flowstate.command import rows, status, tail
from flowstate.command.place import Place, freshness, key_of
from flowstate.errors import InvalidFlow
from flowstate.plan.position import Place as LogPlace
from flowstate.view import troubles
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.changes import Change
from flowstate.view.directory import ViewInfo
from flowstate_http.answering import row_texts


def test_every_public_name_is_imported_when_it_is_used() -> None:
    assert {name: getattr(fs, name).__name__ for name in fs.__all__} == {name: name for name in fs.__all__}
    assert set(fs.__all__) <= set(dir(fs))
    with pytest.raises(AttributeError, match="has no attribute 'conect'"):
        _ = fs.conect  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("where", "address"),
    [
        ("localhost:8815", "grpc://localhost:8815"),
        ("[::1]:8815", "grpc://[::1]:8815"),
        ("grpc+tls://worker:1", "grpc+tls://worker:1"),
        ("snapshots/", None),
        ("/var/snapshots", None),
        ("s3://bucket/billing", None),
        ("snapshots", None),
    ],
)
def test_an_address_is_told_from_snapshots(where: str, address: str | None) -> None:
    assert Place(where).address == address


def test_with_roots_nothing_is_sent_in_the_clear() -> None:
    assert Place("worker:8815", roots="authority.pem").address == "grpc+tls://worker:8815"


def test_the_address_of_http_is_refused() -> None:
    with pytest.raises(InvalidFlow, match="HTTP service"), Place("http://127.0.0.1:8080").opened():
        pass


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (pa.string(), "00123", "00123"),
        (pa.string(), "", ""),
        (pa.int64(), "00123", 123),
        (pa.int64(), "-9223372036854775808", -(2**63)),
        (pa.decimal128(12, 2), "1000000000.01", Decimal("1000000000.01")),
        (pa.bool_(), "true", True),
        (pa.date32(), "2026-01-31", dt.date(2026, 1, 31)),
        (pa.time64("us"), "10:30", dt.time(10, 30)),
        (pa.timestamp("ms", "UTC"), "2026-01-31", dt.datetime(2026, 1, 31, tzinfo=dt.UTC)),
        (pa.timestamp("ms", "UTC"), "2026-01-31T10:00+02:00", dt.datetime(2026, 1, 31, 8, tzinfo=dt.UTC)),
        (pa.timestamp("us"), "2026-01-31T10:00:00.000001", dt.datetime(2026, 1, 31, 10, 0, 0, 1)),
    ],
)
def test_a_key_takes_the_type_of_its_column(kind: pa.DataType, text: str, value: object) -> None:
    assert key_of(view(kind), [text]).to_pylist() == [{"k": value}]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.int64(), "1.0"),
        (pa.int64(), "9223372036854775808"),
        (pa.int8(), "300"),
        (pa.decimal128(12, 2), "1.005"),
        (pa.bool_(), "maybe"),
        (pa.date32(), "31.1.2026"),
        (pa.timestamp("ms", "UTC"), "yesterday"),
        (pa.timestamp("ms", "UTC"), "2026-01-31T10:00:00.000001Z"),
        (pa.timestamp("us"), "2026-01-31T10:00Z"),
        (pa.time64("us"), "25:00"),
    ],
)
def test_a_value_that_does_not_fit_exactly_is_refused(kind: pa.DataType, text: str) -> None:
    with pytest.raises(InvalidFlow, match="is no value for 'k', a column of type"):
        key_of(view(kind), [text])


def test_a_key_has_a_value_for_each_of_its_columns_but_those_of_the_window() -> None:
    schema = pa.schema({"a": pa.string(), "b": pa.string(), "month": pa.timestamp("us", "UTC"), "n": pa.int64()})
    info = ViewInfo("v", schema, "keyed", ("a", "b", "month"), ("a", "b"), "month")
    assert key_of(info, ["x", "y"]).schema.names == ["a", "b"]
    assert key_of(info, ["x", "y", "2026-01-01"]).schema.names == ["a", "b", "month"]
    for wrong in (["x"], ["x", "y", "2026-01-01", "z"]):
        with pytest.raises(InvalidFlow, match=r"is a b \[month\]; what stands in brackets may be left out"):
            key_of(info, wrong)
    with pytest.raises(InvalidFlow, match="has no key"):
        key_of(ViewInfo("late", schema, "append"), ["x"])


def test_freshness_is_that_of_every_way_of_reading() -> None:
    found = freshness(None, ["billing/topic/0=17", "a=b=3"], False, None, 2.0)
    assert found.at_least == {"billing/topic/0": LogPlace(17), "a=b": LogPlace(3)}
    assert found.wait == 2.0
    with pytest.raises(InvalidFlow, match="a snapshot has a position of its own"):
        freshness(1.0, [], False, 3, None)
    for wrong in ("17", "=17", "a=", "a=-1", "a=1.5"):
        with pytest.raises(InvalidFlow, match="SPLIT=OFFSET"):
            freshness(None, [wrong], False, None, None)


def test_text_is_aligned_and_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(rows, "write", written.append)
    batch = pa.record_batch(
        {
            "name": ["日本", "a\x1b[2Jb", None, "é"],
            "total": pa.array([Decimal("1.00"), Decimal("-100.25"), None, Decimal("0.00")], pa.decimal128(9, 2)),
        }
    )
    assert rows.write_rows("text", batch.schema, [batch]) == 4
    assert b"".join(written).decode().splitlines() == [
        "name             total",
        "日本              1.00",
        '"a\\u001b[2Jb"  -100.25',
        "null              null",
        "é                 0.00",
    ]


def test_rows_that_come_late_keep_to_the_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(rows, "write", written.append)
    first = pa.record_batch({"n": pa.array(range(rows.LOOK), pa.int64())})
    last = pa.record_batch({"n": pa.array([5, 123456], pa.int64())})
    assert rows.write_rows("text", first.schema, [first, last]) == rows.LOOK + 2
    lines = b"".join(written).decode().splitlines()
    assert lines[:2] == ["  n", "  0"]
    assert lines[-2:] == ["  5", "123456"]


def test_json_is_that_of_http() -> None:
    batch = pa.record_batch(
        {
            "total": pa.array([Decimal("1000000000.010"), None], pa.decimal128(20, 3)),
            "at": pa.array([0, 1_700_000_000_001], pa.timestamp("ms", "Europe/Berlin")),
            "ratio": [float("nan"), 0.1],
            "raw": [b"\xff", b"text"],
            "list": [[1, None], []],
        }
    )
    assert rows.json_rows(batch) == row_texts(batch)
    assert rows.json_rows(batch)[0].startswith(b'{"total":1000000000.010,"at":"1970-01-01T00:00:00.000Z","ratio":"NaN"')


def test_csv_has_one_header_and_no_nested_values(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(rows, "write", written.append)
    batch = pa.record_batch({"a\nb": ["x", None], "n": [1, 2]})
    rows.write_rows("csv", batch.schema, [batch, batch.slice(0, 0), batch.slice(1)])
    assert b"".join(written) == b'"a\nb","n"\n"x",1\n,2\n,2\n'
    with pytest.raises(InvalidFlow, match="ask with --json"):
        rows.write_rows("csv", pa.schema({"l": pa.list_(pa.int64())}), [])


TOLD = [
    ("reset", 0, 0),
    ("rows", 2, 0),
    ("position", 0, 0),
    ("position", 0, 0),
    ("removed", 1, 0),
    ("reset", 0, 0),
    ("rows", 1, 3),
]


def changes() -> list[Change]:
    """A beginning, a quiet round, a key that is gone, and a partition that is told anew after some rows were missed."""
    batch = pa.record_batch({"k": ["a", "bb"], "n": [1, 22]})
    answer = Answer(
        "job", "v", tuple(PartitionAnswer(each, 1, {"s": LogPlace(9 - each)}, 0, 0.0, "live") for each in (0, 1))
    )
    return [
        Change(kind, 1, batch.slice(0, rows), answer if kind == "position" else None, "token", missed)  # type: ignore[arg-type]
        for kind, rows, missed in TOLD
    ]


def test_changes_as_json_say_what_each_line_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(tail, "write", written.append)
    told = tail.JsonChanges(view(pa.string()))
    for each in changes():
        told.tell(each)
    assert b"".join(written).decode().splitlines() == [
        '{"change":"rows","row":{"k":"a","n":1}}',
        '{"change":"rows","row":{"k":"bb","n":22}}',
        '{"change":"position","position":{"s":[8,0]},"resume":"token"}',
        '{"change":"removed","key":{"k":"a"}}',
        '{"change":"reset","partition":1}',
        '{"change":"missed","rows":3}',
        '{"change":"rows","row":{"k":"a","n":1}}',
    ]


def test_changes_as_text_stay_in_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(rows, "write", written.append)
    told = tail.TextChanges(view(pa.string()))
    for each in changes():
        told.tell(each)
    assert b"".join(written).decode().splitlines() == [
        "change   k    n",
        "row      a    1",
        "row      bb  22",
        "removed  a",
        "reset",
        "missed   3",
        "row      a    1",
    ]


def test_a_partition_that_stays_behind_another_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "LATE", 0.0)
    partitions = pa.table({"partition": [0, 1, 2], "state": ["live", "live", "saved"]})

    def positions(*offsets: int) -> pa.Table:
        return pa.table({"partition": [0, 1, 2], "split": ["a/b"] * 3, "offset": list(offsets)})

    class System:
        def __init__(self, *later: int) -> None:
            self.later = later

        def scan_reader(self, view: str) -> pa.RecordBatchReader:
            assert view == "flowstate_positions"
            return positions(*self.later).to_reader()

    def late(*later: int) -> list[str]:
        system: Any = System(*later)
        return list(status._late(system, {"partitions": partitions, "positions": positions(100, 40, 7)}))

    assert late(500, 100, 7) == [], "it came to where the other one was, and one that is away is not late besides"
    assert late(100, 90, 7) == ["partition 1 is late: in split a/b it is 10 before where another one was 0 s ago"]


def test_a_sink_that_does_not_take_its_rows_is_trouble() -> None:
    row = {"sink": 0, "kind": "kafka", "view": "totals", "url": "b", "rejected": 0}
    told = [
        row | {"partition": 1, "problem": "Unavailable: no broker retry_after=1.0 topic='b'", "waiting_seconds": 90.0},
        row | {"partition": 2, "problem": "Unavailable: no broker retry_after=5.0 topic='b'", "waiting_seconds": 30.0},
        row | {"partition": 3, "problem": None, "waiting_seconds": 90.0},
        row | {"partition": 4, "problem": None, "waiting_seconds": 1.0},
        row | {"partition": 5, "problem": None, "waiting_seconds": None, "rejected": 3},
    ]
    assert [words for _, words in troubles.sinks(told)] == [
        "sink 0 (kafka of totals to b) does not take its rows, which wait (partitions 1 and 2, for 90 s): no broker topic='b'",
        "sink 0 (kafka of totals to b) does not take its rows, which wait (partition 3, for 90 s): it has not taken what waits for it, and "
        "does not say why; look at it",
        "sink 0 (kafka of totals to b): 3 rows were refused for good; job.rejected() has them",
    ]


def test_a_token_is_shown_and_a_wrong_one_refused(guarded: Guarded) -> None:
    location = guarded.service.location
    words = ("get", location, "subtotals", "customer-3", "b", "--job", "billing", "--json")
    given, wrong, of_others = ask_all(
        [*words, "--token", token("anna")],
        [*words, "--token", "fst_wrong"],
        ["get", location, "subtotals", "customer-4", "a", "--job", "billing", "--token", token("anna")],
    )
    by_environment = ask(*words, env={"FLOWSTATE_TOKEN": token("anna")})
    assert given.code == 0
    assert '"customer":"customer-3"' in given.out
    assert by_environment == given
    assert (wrong.code, wrong.out) == (1, "")
    assert (of_others.code, of_others.out) == (1, ""), "a key of others is one that is not there"


def test_a_service_is_checked_by_roots_and_shown_a_certificate(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.sign("127.0.0.1")
    guarded = Guarded(tls=fs.Tls(certificate, key, authority.certificate, clients=authority.certificate))
    certificate, key = authority.sign("anna.example.org")
    for name, pem in (("roots", authority.certificate), ("anna", certificate), ("key", key)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    bare = guarded.service.location.removeprefix("grpc+tls://")
    words = ["get", bare, "subtotals", "customer-3", "b", "--job", "billing", "--csv"]
    shown = ["--tls-certificate", str(tmp_path / "anna.pem"), "--tls-key", str(tmp_path / "key.pem")]
    given, unchecked, unpaired, unread = ask_all(
        [*words, *shown, "--tls-roots", str(tmp_path / "roots.pem")],
        [*words, *shown],
        [*words, *shown[:2], "--tls-roots", str(tmp_path / "roots.pem")],
        [*words, "--tls-roots", str(tmp_path / "nowhere.pem")],
    )
    guarded.close()
    assert given.code == 0, given
    assert '"customer-3","b"' in given.out
    assert (unchecked.code, unchecked.out) == (1, "")
    assert (unpaired.code, unread.code) == (2, 2)
    assert "--tls-certificate and --tls-key" in unpaired.errors
    assert "--tls-roots is the path of a PEM file" in unread.errors


def view(kind: pa.DataType) -> ViewInfo:
    return ViewInfo("v", pa.schema({"k": kind, "n": pa.int64()}), "keyed", ("k",), ("k",))
