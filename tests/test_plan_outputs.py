"""Flows that end in sinks: what they are compiled to, what is refused, and streams that go out row by row."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowstate as fs
from flowstate.api.stream import Output, Stream, View
from flowstate.errors import InvalidFlow
from flowstate.exchange.route import Router
from flowstate.plan.compile import compile
from flowstate.plan.portable import dump_tables, load_tables
from flowstate.plan.position import NEVER, OFFSET, TIME
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, DEAD_LETTERS, REVISIONS, AppendSpec, JobPlan, SinkSpec, TableSpec
from flowstate.runtime.prepare import Preparer
from flowstate.sink import make_sink
from flowstate.source.base import Rows

SCHEMA = pa.schema(
    {"key": pa.string(), "a": pa.int32(), "at": pa.timestamp("ms", "UTC"), "tags": pa.list_(pa.string()), "offset": pa.int8()}
)  # fmt: skip
PARQUET = {"partition_by": ()}


def events(**options: Any) -> Stream:
    given = {"bootstrap": "localhost:9092", "schema": SCHEMA, "event_time": "at"} | options
    return fs.scan_kafka("events", **given)


def hourly(stream: Stream | None = None, *, name: str = "v", grace: str | None = "1h") -> View:
    grouped = (stream or events()).group_by("key", hour=fs.window("at", every="1h", grace=grace))
    return grouped.agg(total=fs.col("a").sum()).view(name)


def plan(*outputs: View | Output) -> JobPlan:
    return compile([each.node for each in outputs])


def test_all_kinds_of_rows_go_out() -> None:
    stream = events()
    view, big = hourly(stream), stream.filter(fs.col("a") > 10)
    job = plan(
        view,
        view.final().sink_parquet("final/", partition_by="hour"),
        view.changes().sink_kafka("totals", bootstrap="localhost:9092"),
        view.late().sink_json("late/", roll_bytes="64MiB"),
        big.sink_csv("big/", roll_bytes="128MB", roll_after="1h30m"),
        big.sink_http("https://example.org/rows", batch=100, patience=60),
        stream.sink_kafka("all", bootstrap="localhost:9092", key=["key"], config={"acks": "all"}),
        fs.dead_letters().sink_json("dead/"),
    )
    keys = ("key", "hour", "hour_end")
    renamed = (("key", "key"), ("a", "a"), ("at", "at"), ("tags", "tags"), ("offset_value", "offset"))
    kafka = {"bootstrap": "localhost:9092", "format": "json"}
    assert job.sinks == (
        SinkSpec("parquet", "v", "final/", "final", {"partition_by": ("hour",)}, (), keys),
        SinkSpec("kafka", "v", "kafka://localhost:9092/totals", "changes", {"topic": "totals", "config": {}} | kafka, (), keys),
        SinkSpec("json", "v_late", "late/", "append", PARQUET | {"roll_bytes": 64 << 20}),
        SinkSpec("csv", "_stream_1", "big/", "append", PARQUET | {"roll_bytes": 128_000_000, "roll_after": 5_400_000_000}, renamed),
        SinkSpec("http", "_stream_1", "https://example.org/rows", "append",
                 {"method": "POST", "headers": {}, "batch": 100, "timeout": 10.0, "patience": 60}, renamed),
        SinkSpec("kafka", "_stream_2", "kafka://localhost:9092/all", "append",
                 {"topic": "all", "config": {"acks": "all"}, "key": ("key",)} | kafka, renamed),
        SinkSpec("json", DEAD_LETTERS, "dead/", "append", PARQUET),
    )  # fmt: skip
    schemas = [each.schema(job.tables[each.table]) for each in job.sinks]
    flows = [view.final(), view.changes(), view.late(), big, big, stream, fs.dead_letters()]
    assert schemas == [each.schema for each in flows]
    for number, each in enumerate(job.sinks):
        make_sink(each, number)  # takes the options that the flow gives it, and touches nothing yet
    assert schemas[0].names == [*keys, "total"]
    assert schemas[1].names == [*keys, "total", "_epoch", "_revision"]
    assert schemas[2].names == ["split", "offset", "key", "a", "at", "tags", "offset_value"]
    assert schemas[3] == SCHEMA
    assert schemas[6] == DEAD_LETTER_SCHEMA
    assert [each.table for each in job.routes] == ["v", "_stream_1", "_stream_2"]
    assert [each.append for each in job.routes] == [False, True, True]
    assert len(job.sources) == 1
    assert list(job.views) == ["v", "v_late", DEAD_LETTERS]
    internal = job.tables["_stream_1"]
    assert isinstance(internal, AppendSpec)
    assert (internal.internal, internal.keep_rows) == (True, 0)
    assert job.name == "v"
    again = pickle.loads(pickle.dumps(job))
    assert again.fingerprint == job.fingerprint
    assert again.sinks == job.sinks
    assert load_tables(json.loads(json.dumps(dump_tables(job.tables)))) == job.tables
    assert job.differences(json.loads(json.dumps(job.describe()))) == []


def test_rows_of_an_internal_table_go_out_under_their_own_names() -> None:
    (sink,) = plan(events().select("offset", "a", split=fs.lit("x")).sink_csv("out/")).sinks
    rows = pa.record_batch(
        {"split": ["s"], "offset": [7], "offset_value": pa.array([1], pa.int8()), "a": [3], "split_value": ["x"]}
    )
    assert sink.outgoing(rows).to_pylist() == [{"offset": 1, "a": 3, "split": "x"}]
    (whole,) = plan(hourly().final().sink_csv("out/")).sinks
    assert whole.outgoing(rows) is rows


def test_only_a_view_whose_changes_go_out_counts_revisions() -> None:
    view = hourly()
    without, final = plan(view), plan(view, view.final().sink_parquet("f/"))
    both = plan(view.changes().sink_parquet("c/"), view.final().sink_parquet("f/"))
    tables = [each.tables["v"] for each in (without, final, both)]
    assert all(isinstance(each, TableSpec) and each.schema == view.schema for each in tables)
    assert [each.counts_revisions for each in tables if isinstance(each, TableSpec)] == [False, False, True]
    assert REVISIONS not in view.changes().schema.names
    assert both.routes[0].schema == without.routes[0].schema
    assert both.name == "v"
    assert both.differences(without.describe()) == [
        "view 'v': revisions were not counted, are counted (for a sink of changes)",
        "sink 1 is new: parquet of changes of 'v'",
        "sink 2 is new: parquet of final rows of 'v'",
    ]


def test_a_job_may_consist_of_sinks_only() -> None:
    job = plan(
        fs.scan_files("s3://logs/clicks/*.jsonl", schema=SCHEMA).sink_parquet("out/"),
        fs.dead_letters().sink_json("dead/"),
    )
    assert job.name == "clicks"
    assert list(job.views) == [DEAD_LETTERS]
    assert plan(hourly().late().sink_json("late/")).name == "v"


def test_a_flow_without_output_outside_means_what_it_always_meant() -> None:
    assert sorted(plan(hourly()).describe()) == ["append", "sources", "version", "views"]


OUT: dict[str, Callable[[], list[Any]]] = {
    "both": lambda: [(v := hourly()), v.final().sink_parquet("a/"), v.late().sink_parquet("b/")],
    "swapped": lambda: [(v := hourly()), v.late().sink_parquet("b/"), v.final().sink_parquet("a/")],
    "one": lambda: [(v := hourly()), v.final().sink_parquet("a/")],
    "other format": lambda: [(v := hourly()), v.final().sink_csv("a/"), v.late().sink_parquet("b/")],
    "elsewhere": lambda: [(v := hourly()), v.final().sink_parquet("s3://other/", compression="gzip"), v.late().sink_parquet("c/")],
}  # fmt: skip
OUT["two folders"] = lambda: [(v := hourly()), v.final().sink_parquet("a/"), v.final().sink_parquet("b/")]
OUT["two folders, swapped"] = lambda: [(v := hourly()), v.final().sink_parquet("b/"), v.final().sink_parquet("./a")]
FINAL, LATE = "parquet of final rows of 'v'", "parquet of rows of 'v_late'"
A, B = "de914df4", "dcf3e2c4"


@pytest.mark.parametrize(
    ("before", "now", "sentences"),
    [
        ("both", "swapped", [f"sink 1 was {FINAL}, is {LATE}", f"sink 2 was {LATE}, is {FINAL}"]),
        ("both", "one", [f"sink 2 is gone: {LATE}"]),
        ("one", "both", [f"sink 2 is new: {LATE}"]),
        ("both", "other format", [f"sink 1 was {FINAL}, is csv of final rows of 'v'"]),
        ("both", "elsewhere", []),
        (
            "two folders",
            "two folders, swapped",
            [
                f"sink 1 was {FINAL} to place {A}, is {FINAL} to place {B}",
                f"sink 2 was {FINAL} to place {B}, is {FINAL} to place {A}",
            ],
        ),
    ],
)
def test_sinks_cannot_change_places_under_what_they_were_handed(before: str, now: str, sentences: list[str]) -> None:
    one, other = plan(*OUT[before]()), plan(*OUT[now]())
    assert other.differences(json.loads(json.dumps(one.describe()))) == sentences
    assert (one.fingerprint == other.fingerprint) == (not sentences)


def test_another_stream_is_another_flow() -> None:
    one, other = (plan(events().filter(fs.col("a") > least).sink_csv("o/")) for least in (1, 2))
    assert other.differences(one.describe()) == ["stream '_stream_1': steps were filter((a > 1)), are filter((a > 2))"]
    assert plan(hourly()).differences(one.describe())[-2:] == [
        "stream '_stream_1' is gone", "sink 1 is gone: csv of rows of '_stream_1'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hourly(grace=None).late(), "only windows that close have late rows"),
        (
            lambda: events().group_by("key").agg(_revision=fs.len()).view("v").changes(),
            "give the view's column another name",
        ),
        (lambda: events().sink_parquet("o/", partition_by="kye"), "did you mean 'key'"),
        (lambda: events().sink_parquet(""), "sink_parquet takes a path or URL"),
        (lambda: events().sink_csv("o/", roll_bytes="12 parsecs"), "roll_bytes is a number of bytes"),
        (lambda: events().sink_csv("o/", roll_bytes=0), "roll_bytes is a number of bytes"),
        (lambda: events().sink_csv("o/", roll_bytes=True), "roll_bytes is a number of bytes"),
        (lambda: events().sink_json("o/", roll_after="soon"), "a duration is written like"),
        (lambda: events().sink_kafka("", bootstrap="x"), "name of a topic"),
        (lambda: events().sink_kafka("t", bootstrap=""), "needs bootstrap"),
        (lambda: events().sink_kafka("t", bootstrap="x", key="kye"), "did you mean 'key'"),
        (lambda: events().sink_http("example.org"), "begins with http"),
        (lambda: events().sink_http("http://a/", timeout="soon"), "a duration is written like"),
    ],
)
def test_what_is_refused_when_it_is_written(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidFlow, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda: [events().filter(fs.col("a") > 1)], "rows are no output by themselves"),
        (lambda: [hourly().late()], "late() is no output by itself"),
        (lambda: [hourly().changes()], "changes() is no output by itself"),
        (lambda: [hourly(), fs.dead_letters()], "dead_letters() is no output by itself"),
        (lambda: [fs.dead_letters().sink_json("d/")], "dead_letters() are those of the job's other outputs"),
        (lambda: [(s := events()).sink_csv("o/"), s.sink_json("file://o")], "two sinks write to the same place"),
        (lambda: [(v := hourly()).final().sink_csv("o/"), v.changes().sink_csv("./o")], "two sinks write to the same place"),
        (lambda: [(s := events()).sink_kafka("t", bootstrap="a:1,b:1"), s.sink_kafka("t", bootstrap="b:1, a:1")],
         "two sinks write to the same place"),
        (lambda: [(s := events()).sink_http("http://a/"), s.sink_http("http://a/")], "two sinks write to the same place"),
        (lambda: [events().sink_kafka("events", bootstrap="localhost:9092")], "would read what it writes"),
        (lambda: [hourly(s := events(), name="_stream_1"), s.sink_csv("o/")], "two tables of the job have the same name"),
        (lambda: [hourly(), events().sink_csv("o/")], "two sources have the same name"),
    ],
)  # fmt: skip
def test_what_is_refused_when_it_is_started(outputs: Callable[[], list[Any]], message: str) -> None:
    with pytest.raises(InvalidFlow, match=re.escape(message)):
        plan(*outputs())


def test_places_that_differ() -> None:
    stream = events()
    job = plan(
        stream.sink_kafka("t", bootstrap="a:1"), stream.sink_kafka("t", bootstrap="b:1"), stream.sink_kafka("u", bootstrap="a:1"),
        stream.sink_csv("o/"), stream.sink_csv("/o"), stream.sink_http("http://a/1"), stream.sink_http("http://a/2"),
    )  # fmt: skip
    assert {each.table for each in job.sinks} == {"_stream_1"}


# streams row by row


def exploded(stream: Stream) -> Stream:
    """What `expected` does by hand: a row per tag, those of even numbers; a tag that is no number fails its record."""
    return stream.explode("tags").with_columns(number=fs.col("tags").cast(pa.int32())).filter(fs.col("number") % 2 == 0)


STREAM = events()
JOB = plan(
    exploded(STREAM).sink_csv("even/"), STREAM.sink_json("all/"), hourly(STREAM), fs.dead_letters().sink_json("dead/")
)
RECORD = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["x", "y", None]),
        "a": st.one_of(st.none(), st.integers(-3, 3)),
        "at": st.integers(0, 5).map(lambda hour: dt.datetime(2024, 1, 1, hour, 30, tzinfo=dt.UTC)),
        "tags": st.one_of(st.none(), st.lists(st.sampled_from(["1", "2", "4", "no", None]), max_size=4)),
        "offset": st.integers(0, 9),
    }
)


def expected(records: list[dict[str, Any]], split: str) -> tuple[list[Any], list[Any], list[int]]:
    """Rows of the stream of even tags, rows of the stream of everything, offsets of records that fail."""
    even, everything, failed = [], [], []
    for number, record in enumerate(records):
        at = 3 * number + 7
        columns = {"split": split, "offset": at, **{name: record[name] for name in ("key", "a", "at")}}
        everything.append(columns | {"tags": record["tags"], "offset_value": record["offset"]})
        if "no" in (record["tags"] or []):
            failed.append(at)
            continue
        for tag in record["tags"] or [None]:
            if tag is not None and int(tag) % 2 == 0:
                even.append(columns | {"tags": tag, "offset_value": record["offset"], "number": int(tag)})
    return even, everything, failed


def stretch(records: list[dict[str, Any]], split: str) -> Rows:
    batch = pa.RecordBatch.from_pylist(records, schema=SCHEMA)
    offsets = 3 * np.arange(len(records), dtype=np.int64) + 7
    batch = batch.append_column(OFFSET, pa.array(offsets))
    times = np.array([int(each["at"].timestamp()) * 1_000_000 for each in records], np.int64)
    batch = batch.append_column(TIME, pa.array(times))
    return Rows(split, 0, 3 * len(records) + 7, batch, pa.RecordBatch.from_pylist([], schema=DEAD_LETTER_SCHEMA))


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(RECORD, max_size=20), cuts=st.lists(st.integers(0, 20), max_size=3), partitions=st.integers(1, 3)
)
def test_a_stream_goes_out_as_if_each_row_came_alone(
    records: list[dict[str, Any]], cuts: list[int], partitions: int
) -> None:
    split = "events/3"
    preparer = Preparer(JOB, Router(partitions=partitions, groups=128, seed=4))
    home = preparer.router.owner_of_split(split)
    whole = stretch(records, split)
    edges = [0, *sorted(min(each, len(records)) for each in cuts), len(records)]
    found: dict[str, list[Any]] = {"_stream_1": [], "_stream_2": [], DEAD_LETTERS: []}
    newest = NEVER
    for since, to in itertools.pairwise(edges):
        rows = Rows(split, 0, 0, whole.batch.slice(since, to - since), whole.dead)
        prepared = preparer.prepare(0, rows, newest, NEVER)
        newest = prepared.newest
        for owner, tables in prepared.owners.items():
            for table in found.keys() & tables.keys():
                assert owner == home
                assert tables[table].num_rows
                spec = JOB.tables[table]
                assert isinstance(spec, AppendSpec)
                assert tables[table].schema.equals(spec.schema)
                found[table] += tables[table].to_pylist()
    even, everything, failed = expected(records, split)
    assert found["_stream_1"] == even
    assert found["_stream_2"] == everything
    assert [(each["offset"], each["view"]) for each in found[DEAD_LETTERS]] == [(at, "_stream_1") for at in failed]


def test_the_streams_of_the_property_are_the_ones_meant() -> None:
    assert [each.table for each in JOB.sinks] == ["_stream_1", "_stream_2", DEAD_LETTERS]


def test_a_secret_in_a_url_is_not_shown() -> None:
    stream = events()
    outputs = [stream.sink_http("https://a/rows?token=secret") for _ in range(2)]
    with pytest.raises(InvalidFlow, match="same place") as caught:
        plan(*outputs)
    assert "https://a/rows?..." in str(caught.value)
    assert "https://a/rows?..." in outputs[0].explain()
    assert "secret" not in str(caught.value) + outputs[0].explain() + json.dumps(plan(outputs[0]).describe())
