"""Flows as they are written, and what they are compiled to."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from flowstate.api.stream import Output, Stream, View, from_arrow, scan_files, scan_kafka
from flowstate.errors import InvalidFlow
from flowstate.plan.compile import compile
from flowstate.plan.expr import col, lit
from flowstate.plan.expr import len as length
from flowstate.plan.expr_choice import when
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, AppendSpec, JobPlan, TableSpec
from flowstate.plan.window import window

SCHEMA = pa.schema(
    {"customer": pa.string(), "kind": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC"),
     "ok": pa.bool_(), "tags": pa.list_(pa.string())}
)  # fmt: skip
HOUR = 3_600_000_000


def orders(**options: Any) -> Stream:
    given = {"bootstrap": "localhost:9092", "schema": SCHEMA, "event_time": "at", "lateness": "12h"} | options
    return scan_kafka("billable-events", **given)


def billing(stream: Stream | None = None, *, grace: str | None = "3d", name: str = "monthly_subtotals") -> View:
    grouped = (stream or orders()).group_by("customer", month=window("at", every="1mo", grace=grace))
    return grouped.agg(total=col("amount").sum(), events=length()).view(name)


def plan(*outputs: View | Output) -> JobPlan:
    return compile([each.node for each in outputs])


def test_the_billing_flow_builds_as_it_is_written() -> None:
    subtotals = billing()
    invoices = subtotals.final().sink_parquet("invoices/", partition_by="month")
    job = plan(subtotals, invoices)
    (source,) = job.sources
    assert (source.name, source.kind, source.event_time) == ("billable-events", "kafka", "at")
    assert (source.lateness, source.max_ahead) == (12 * HOUR, 24 * HOUR)
    assert source.options == {
        "topic": "billable-events", "bootstrap": "localhost:9092", "format": "json", "start": "earliest", "lost": "refuse",
        "config": {}, "name": "billable-events",
    }  # fmt: skip
    assert list(job.tables) == ["monthly_subtotals", "monthly_subtotals_late", "dead_letters"]
    table = job.tables["monthly_subtotals"]
    assert isinstance(table, TableSpec)
    moment = pa.timestamp("ms", "UTC")
    assert table.schema == subtotals.schema == pa.schema(
        [("customer", pa.string()), pa.field("month", moment, nullable=False), pa.field("month_end", moment, nullable=False),
         ("total", pa.decimal128(38, 2)), ("events", pa.int64())]
    )  # fmt: skip
    assert table.routing_keys == ("customer",)
    assert not table.ordered
    late = job.tables["monthly_subtotals_late"]
    assert isinstance(late, AppendSpec) and late.schema.names == ["split", "offset", *SCHEMA.names]
    dead = job.tables["dead_letters"]
    assert isinstance(dead, AppendSpec) and dead.schema == DEAD_LETTER_SCHEMA
    (sink,) = job.sinks
    assert (sink.table, sink.url, sink.mode, sink.options["partition_by"]) == (
        "monthly_subtotals",
        "invoices/",
        "final",
        ("month",),
    )
    assert job.routes[0].schema.names == ["customer", "month", "month_end", "amount", "__offset"]


def test_views_share_a_scan_and_aggregates_an_input() -> None:
    stream = orders()
    kinds = stream.filter(col("ok")).group_by("kind").agg(
        total=col("amount").sum(), mean=col("amount").mean(), newest=col("amount").last(), good=col("ok").sum(), n=length()
    ).view("kinds")  # fmt: skip
    job = plan(billing(stream), kinds)
    assert [route.source for route in job.routes] == [0, 0] and len(job.sources) == 1
    assert job.routes[1].schema.names == ["kind", "amount", "cast(ok, type=int64)", "__offset", "__time"]
    table = job.tables["kinds"]
    assert isinstance(table, TableSpec) and table.ordered and "kinds_late" not in job.tables
    assert [(each.function, each.input) for each in table.aggregates] == [
        ("sum", "amount"), ("mean", "amount"), ("last", "amount"), ("sum", "cast(ok, type=int64)"), ("len", None)
    ]  # fmt: skip


def test_an_input_never_has_the_name_of_a_key() -> None:
    job = plan(orders().group_by("customer").agg(n=col("customer").count(), first=col("customer").first()).view("v"))
    assert job.routes[0].schema.names == ["customer", "of customer", "__offset", "__time"]


def test_a_key_that_is_a_window_alone_is_spread_by_its_start() -> None:
    table = plan(orders().group_by(day=window("at", every="1d")).agg(n=length()).view("days")).tables["days"]
    assert isinstance(table, TableSpec) and table.routing_keys == ("day",)


def shout(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def everything() -> JobPlan:
    stream = (
        orders()
        .with_columns(
            big=when(col("amount") > 100).then(lit("big")).otherwise("small"), hour=col("at").dt.truncate("1h")
        )
        .filter(col("kind").is_in({"a", "b", "c"}), ~col("ok"))
        .explode("tags")
        .select("customer", "tags", "big", "amount", "at")
        .map_batches(
            shout, pa.schema({"customer": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")})
        )
    )
    return plan(billing(stream))


def test_a_plan_survives_pickling_and_is_the_same_in_another_process() -> None:
    job = everything()
    again = pickle.loads(pickle.dumps(job))
    assert again.describe() == job.describe() and again.fingerprint == job.fingerprint
    assert json.loads(json.dumps(job.describe())) == job.describe()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_plan_compile as t; print(t.everything().fingerprint)"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code, str(__file__).rpartition("/")[0]],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert run.stdout.strip() == job.fingerprint


def test_what_may_change_under_a_job_is_not_in_its_fingerprint() -> None:
    one = plan(billing())
    other = plan(
        billing(orders(bootstrap="elsewhere:9092", start="latest", config={"sasl.password": "secret"})),
    )
    assert one.fingerprint == other.fingerprint
    assert "secret" not in json.dumps(other.describe()) and "elsewhere" not in json.dumps(other.describe())
    view = billing()
    places = [plan(view, view.final().sink_parquet(place, **options)).fingerprint
              for place, options in (("anywhere/", {}), ("s3://b/", {"storage_options": {"key": "secret"}}))]  # fmt: skip
    assert places[0] == places[1] != one.fingerprint
    assert one.differences(other.describe()) == []


@pytest.mark.parametrize(
    ("changed", "sentences"),
    [
        (lambda: billing(grace="4d"),
         ["view 'monthly_subtotals': window: grace was 259200000000us, is 345600000000us"]),
        (lambda: billing(orders(lateness="1h")), ["source 'billable-events': lateness was 43200000000us, is 3600000000us"]),
        (lambda: billing(orders().filter(col("ok"))), ["view 'monthly_subtotals': steps were none, are filter(ok)"]),
        (lambda: billing(name="other"),
         ["view 'monthly_subtotals' is gone", "view 'other' is new", "table 'other_late' is new",
          "table 'monthly_subtotals_late' is gone"]),
        (lambda: billing(grace=None),
         ["view 'monthly_subtotals': window: grace was 259200000000us, is none", "table 'monthly_subtotals_late' is gone"]),
        (lambda: orders().group_by("customer", month=window("at", every="1mo", grace="3d")).agg(
            total=col("amount").max(), n=length()).view("monthly_subtotals"),
         ["view 'monthly_subtotals': type of aggregate 'events' is gone", "view 'monthly_subtotals': type of aggregate 'n' is new",
          "view 'monthly_subtotals': type of aggregate 'total' was decimal128(38, 2), is decimal128(12, 2)",
          "view 'monthly_subtotals': aggregate 'events' is gone", "view 'monthly_subtotals': aggregate 'n' is new",
          "view 'monthly_subtotals': aggregate 'total' was sum(amount), is max(amount)"]),
        (lambda: billing(orders(schema=SCHEMA.append(pa.field("extra", pa.int8())))),
         ["source 'billable-events': column 'extra' is new"]),
    ],
)  # fmt: skip
def test_differences_are_sentences(changed: Callable[[], View], sentences: list[str]) -> None:
    before = json.loads(json.dumps(plan(billing()).describe(), sort_keys=True))
    now = plan(changed())
    assert sorted(now.differences(before)) == sorted(sentences)
    assert now.fingerprint != plan(billing()).fingerprint
    assert plan(changed()).differences(now.describe()) == []


def test_the_order_of_keys_is_part_of_the_plan() -> None:
    one, other = (
        plan(orders().group_by(*keys).agg(n=length()).view("v"))
        for keys in (("kind", "customer"), ("customer", "kind"))
    )
    assert one.fingerprint != other.fingerprint
    assert other.differences(one.describe())[0] == "view 'v': order of key types was kind, customer, is customer, kind"


def test_files_and_arrow() -> None:
    stream = scan_files("s3://logs/clicks/*.jsonl.gz", schema=SCHEMA, follow=True, storage_options={"anon": True})
    spec = plan(stream.group_by("kind").agg(n=length()).view("v")).sources[0]
    assert (spec.name, spec.options["format"], spec.options["follow"], spec.max_ahead) == ("clicks", "json", True, None)
    assert "s3://" not in json.dumps(plan(stream.group_by("kind").agg(n=length()).view("v")).describe())
    table = pa.table({"k": ["a", "b"], "x": [1, 2]})
    spec = plan(from_arrow(table, splits=2).group_by("k").agg(col("x").sum(), length()).view("v")).sources[0]
    assert spec.options["splits"] == 2 and pa.Table.from_batches(spec.options["batches"]).equals(table)


def test_explain_tells_the_flow() -> None:
    text = billing(orders().filter(col("ok"))).final().sink_parquet("out/").explain()
    assert [line.partition("(")[0] for line in text.splitlines()] == [
        "scan_kafka", "filter", "group_by", "view", "final", "sink_parquet"
    ]  # fmt: skip
    assert "total decimal128(38, 2)" in text
    scan = scan_files("a.jsonl", schema=SCHEMA, event_time="at", lateness="1h30m")
    rolling = window("at", every="15m", offset="-5m", grace="1d", keep="36h")
    lines = scan.group_by("kind", slot=rolling).agg(n=length()).view("v").explain().splitlines()
    assert lines[0].startswith("scan_files('a', event_time='at', lateness='1h30m'): ")
    assert "slot=window('at', every='15m', offset='-5m', grace='1d', keep='1d12h')" in lines[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: orders(event_time="att"), "event_time names no column: 'att'; did you mean 'at'"),
        (lambda: orders(event_time="kind"), "timestamp or date32"),
        (lambda: orders(format="avro"), "one of 'json'"),
        (lambda: orders(start="now"), "one of 'earliest'"),
        (lambda: orders(start=dt.datetime(2024, 1, 1)), "needs a time zone"),
        (lambda: orders(lateness="1mo"), "no fixed size"),
        (lambda: orders(schema={"a": "int"}), "needs schema=pa.schema"),
        (lambda: orders(schema=pa.schema({"__a": pa.int8()}), event_time=None), "reserved"),
        (lambda: orders(schema=pa.schema([("a", pa.int8()), ("a", pa.int8())]), event_time=None), "two columns have the same name"),
        (lambda: orders(schema=pa.schema({"a": pa.dictionary(pa.int8(), pa.string())}), event_time=None), "type of its values"),
        (lambda: scan_files("data.jsonl"), "scan_files needs schema"),
        (lambda: scan_files("data.txt", schema=SCHEMA), "say format='json'"),
        (lambda: from_arrow([]), "from_arrow takes"),
        (lambda: from_arrow(pa.table({"a": [1]}), splits=0), "at least 1"),
        (lambda: orders().filter(), "needs a condition"),
        (lambda: orders().filter(col("amount")), "condition that is true or false"),
        (lambda: orders().select("custommer"), "did you mean 'customer'"),
        (lambda: orders().select("kind", "kind"), "two columns have the same name"),
        (lambda: orders().select(col("amount").sum()), "group_by(...).agg(...)"),
        (lambda: orders().with_columns(m=window("at", every="1h")), "dt.truncate"),
        (lambda: orders().explode("tag"), "did you mean 'tags'"),
        (lambda: orders().explode("kind"), "needs a column of lists"),
        (lambda: orders().map_batches(3, SCHEMA), "takes a function"),
        (lambda: orders().map_batches(shout, None), "needs schema"),
        (lambda: orders().group_by().agg(n=length()), "group_by needs a key"),
        (lambda: orders().group_by("tags").agg(n=length()), "cast this key"),
        (lambda: orders().group_by(window("at", every="1h")).agg(n=length()), "a window needs a name"),
        (lambda: orders().group_by(a=window("at", every="1h"), b=window("at", every="1d")).agg(n=length()), "at most one window"),
        (lambda: orders().group_by(a=window("att", every="1h")).agg(n=length()), "did you mean 'at'"),
        (lambda: orders(event_time=None).group_by(a=window("at", every="1h", grace="1h")).agg(n=length()), "event_time="),
        (lambda: orders().group_by("kind").agg(), "needs an aggregate"),
        (lambda: orders().group_by("kind").agg(n=col("amount")), "takes aggregates"),
        (lambda: orders().group_by("kind").agg(kind=length()), "two columns have the same name"),
        (lambda: orders().group_by("kind", n=window("at", every="1h")).agg(n_end=length()), "two columns have the same name"),
        (lambda: orders().group_by("kind").agg(n=col("kind").sum()), "sum needs numbers"),
        (lambda: orders().group_by("kind").agg(n=length()).view("my view"), "so that SQL can say it"),
        (lambda: orders().group_by("kind").agg(n=length()).view("v").final(), "only windows that close"),
        (lambda: billing(grace=None).final(), "only windows that close"),
        (lambda: billing().final().sink_parquet("x/", partition_by="mont"), "did you mean 'month'"),
        (lambda: billing().final().sink_parquet(""), "sink_parquet takes a"),
    ],
)  # fmt: skip
def test_what_is_refused_when_it_is_written(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidFlow, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda: [], "a job needs an output"),
        (lambda: [orders()], "rows are no output by themselves"),
        (lambda: [orders().group_by("kind").agg(n=length())], "end it with .view('name')"),
        (lambda: [billing().final()], "final() is no output by itself"),
        (lambda: [billing().changes()], "changes() is no output by itself"),
        (lambda: [billing(), billing(grace="1d")], "two tables of the job have the same name"),
        (lambda: [billing(), billing(name="other")], "two sources have the same name"),
        (lambda: [billing(name="dead_letters")], "two tables of the job have the same name"),
        (lambda: [billing(stream := orders(), name="v"), stream.group_by("kind").agg(n=length()).view("v_late")],
         "two tables of the job have the same name"),
        (lambda: [(view := billing()).final().sink_parquet("x/"), view.final().sink_parquet("x/")], "write to the same place"),
    ],
)  # fmt: skip
def test_what_is_refused_when_it_is_started(outputs: Callable[[], list[Any]], message: str) -> None:
    with pytest.raises(InvalidFlow, match=re.escape(message)):
        compile([each.node for each in outputs()])
