"""A job on a real cluster of worker processes: answers, status, snapshots, stopping, attaching, two at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from distributed import Client, LocalCluster
from local_cluster import two_workers
from waiting import until

import flowstate as fs
from flowstate.view.answer import Answer

SCHEMA = pa.schema(
    {"customer": pa.string(), "kind": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")}
)
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def rows(count: int, seed: int = 0, days: int = 90) -> list[dict[str, Any]]:
    source = random.Random(seed)
    step = timedelta(days=days) / count
    return [
        {
            "customer": source.choice(["anna", "bob", "carl", None]),
            "kind": source.choice(["call", "data"]),
            "amount": Decimal(source.randint(-500, 5000)) / 100,
            "at": BEGIN + step * number - timedelta(hours=source.choice([0, 0, 0, 1, 11])),
        }
        for number in range(count)
    ]


def monthly(events: Any, name: str = "monthly", **window: Any) -> Any:
    return (
        events.group_by("customer", month=fs.window("at", every="1mo", **({"grace": "3d"} | window)))
        .agg(total=fs.col("amount").sum(), events=fs.len())
        .view(name)
    )


def expected(given: list[dict[str, Any]]) -> dict[tuple[str | None, datetime], tuple[Decimal, int]]:
    totals: dict[tuple[str | None, datetime], tuple[Decimal, int]] = {}
    for row in given:
        key = row["customer"], row["at"].replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        total, count = totals.get(key, (Decimal(0), 0))
        totals[key] = total + row["amount"], count + 1
    return totals


def answered(table: pa.Table) -> dict[tuple[str | None, datetime], tuple[Decimal, int]]:
    return {(row["customer"], row["month"]): (row["total"], row["events"]) for row in table.to_pylist()}


def append(path: Path, given: list[dict[str, Any]]) -> None:
    with path.open("ab") as log:
        for row in given:
            customer = f'"{row["customer"]}"' if row["customer"] is not None else "null"
            at = row["at"].strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
            text = f'{{"customer":{customer},"kind":"{row["kind"]}","amount":{row["amount"]},"at":"{at}Z"}}\n'
            log.write(text.encode())


def test_finite_input_ends_by_itself(client: Client, tmp_path: Path) -> None:
    given = rows(5000)
    events = fs.from_arrow(pa.Table.from_pylist(given, SCHEMA), event_time="at", lateness="12h", splits=3)
    view = monthly(events)
    sink = view.final().sink_parquet(tmp_path / "invoices", partition_by="month")
    with fs.start(view, sink, snapshots=tmp_path / "snapshots", every="500ms", client=client) as job:
        job.wait(timeout=60)
        assert answered(job.to_table("monthly")) == expected(given)
        anna = job["monthly"]["anna"]
        assert answered(anna) == {key: value for key, value in expected(given).items() if key[0] == "anna"}
        assert answered(job["monthly"][None]).keys() == {key for key in expected(given) if key[0] is None}
        january = job["monthly"]["anna", BEGIN]
        assert answered(january) == {("anna", BEGIN): expected(given)["anna", BEGIN]}
        with pytest.raises(KeyError):
            job["monthly"]["nobody"]
        with pytest.raises(fs.InvalidFlow, match="did you mean 'monthly'"):
            job["montly"]
        by_sql = job.sql(
            "select month, sum(total), sum(events)::bigint from monthly group by all order by all"
        ).fetchall()
        assert sum(each[2] for each in by_sql) == len(given)
        answer = Answer.of(anna.schema)
        assert answer is not None
        assert [part.origin for part in answer.parts] == ["live"]
        assert all(part.position for part in answer.parts)
        assert job.status()["state"] == "finished"
        files = ds.dataset(tmp_path / "invoices", partitioning="hive").to_table()
        assert files.num_rows == len(expected(given))
        assert sum(files["total"].to_pylist()) == sum(row["amount"] for row in given)
    assert job.status()["state"] == "stopped"


def test_a_job_that_came_to_its_end_is_saved_as_a_whole_at_once(client: Client, tmp_path: Path) -> None:
    """So that another number of partitions can go on from it, although nobody stopped it in order."""
    path = tmp_path / "log.jsonl"
    given = rows(300, seed=2)
    append(path, given)
    view = monthly(fs.scan_files(path, schema=SCHEMA, event_time="at", lateness="12h"))
    with fs.start(view, snapshots=tmp_path / "snapshots", client=client, partitions=2, every="1h") as job:
        until(lambda: job.status()["saved_cut"].get("number"), says=job.status)
        assert job.status()["state"] == "finished"
        with fs.open_snapshot(tmp_path / "snapshots", at=job.status()["saved_cut"]["number"]) as saved:
            assert answered(saved.to_table("monthly")) == expected(given)


def test_snapshots_are_consistent_and_repeatable(client: Client, tmp_path: Path) -> None:
    """Every event is in both views, so at one position their sums are equal; live answers of two moments need not be."""
    path = tmp_path / "log.jsonl"
    given = rows(6000, seed=1)
    append(path, given[:1000])
    events = fs.scan_files(path, schema=SCHEMA, event_time="at", lateness="12h", follow=True)
    by_kind = events.group_by("kind").agg(total=fs.col("amount").sum(), events=fs.len()).view("by_kind")
    with fs.start(monthly(events), by_kind, snapshots=tmp_path / "snapshots", client=client, every="300ms") as job:
        for at in range(1000, 6000, 250):
            append(path, given[at : at + 250])
            moment = job.snapshot()
            question = "select (select sum(total) from monthly), (select sum(total) from by_kind)"
            one, other = moment.sql(question).fetchall()[0]
            assert one == other
            assert moment.sql(question).fetchall() == [(one, other)]
        until(lambda: job.sql("select sum(events) from by_kind").fetchall() == [(6000,)])
        assert job.snapshot().sql("select sum(events) from monthly").fetchall() == [(6000,)]
        until(lambda: job.status()["saved_cut"].get("number", 0) > 3)
    with fs.open_snapshot(tmp_path / "snapshots") as saved:
        assert answered(saved.to_table("monthly")) == expected(given)
        answer = Answer.of(saved["monthly"]["anna"].schema)
        assert answer is not None
        assert answer.parts[0].origin == "saved"
        newest = answer.parts[0].snapshot
    assert newest is not None
    with fs.open_snapshot(tmp_path / "snapshots", at=newest - 2) as earlier:
        one, other = earlier.sql(
            "select (select sum(total) from monthly), (select sum(total) from by_kind)"
        ).fetchall()[0]
        assert one == other
    with pytest.raises(fs.InvalidFlow, match="no such cut"):
        fs.open_snapshot(tmp_path / "snapshots", at=10_000)


def test_late_rows_and_dead_letters_are_views(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    given = rows(500, days=80)
    append(path, given)
    append(path, [{"customer": "late", "kind": "call", "amount": Decimal("1.00"), "at": BEGIN + timedelta(days=3)}])
    with path.open("ab") as log:
        log.write(b'{"customer":"anna","kind":"call","amount":1.234,"at":"2024-03-01T00:00:00Z"}\nnot json\n')
    view = monthly(fs.scan_files(path, schema=SCHEMA, event_time="at", lateness="12h"))
    with fs.start(view, snapshots=tmp_path / "snapshots", client=client) as job:
        job.wait(timeout=60)
        assert answered(job.to_table("monthly")) == expected(given)
        late = job.sql("select customer, amount, split from monthly_late").fetchall()
        assert [each[:2] for each in late] == [("late", Decimal("1.00"))]
        dead = job.sql('select reason, raw from dead_letters order by "offset"').fetchall()
        assert len(dead) == 2
        assert "3 decimals" in dead[0][0]
        assert dead[1][1] == b"not json"


def test_new_files_are_found_and_close_windows(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    given = rows(900, days=85)
    append(folder / "a.jsonl", given[:600])
    events = fs.scan_files(f"{folder}/*.jsonl", schema=SCHEMA, event_time="at", lateness="12h", follow=True)
    view = monthly(events)
    sink = view.final().sink_parquet(tmp_path / "invoices", partition_by="month")
    with fs.start(
        view, sink, snapshots=tmp_path / "snapshots", every="300ms", client=client, idle_after="500ms"
    ) as job:
        until(lambda: job.sql("select sum(events) from monthly").fetchall() == [(600,)])
        append(folder / "b.jsonl", given[600:])
        until(lambda: job.sql("select sum(events) from monthly").fetchall() == [(900,)])
        job.drain(timeout=60)
        assert answered(job.to_table("monthly")) == expected(given)
        files = ds.dataset(tmp_path / "invoices", partitioning="hive").to_table()
        assert sum(files["events"].to_pylist()) == len(given)


def test_a_changed_flow_is_refused_with_the_difference(client: Client, tmp_path: Path) -> None:
    def events(lateness: str) -> Any:
        return fs.from_arrow(pa.Table.from_pylist(rows(50), SCHEMA), event_time="at", lateness=lateness)

    with fs.start(monthly(events("12h")), snapshots=tmp_path, client=client) as job:
        job.wait(timeout=60)
    changed = events("12h").group_by("customer", month=fs.window("at", every="1mo", grace="3d"))
    with pytest.raises(fs.InvalidFlow, match=r"'total' was sum.*, is mean"):
        fs.start(
            changed.agg(total=fs.col("amount").mean(), events=fs.len()).view("monthly"),
            snapshots=tmp_path,
            client=client,
        )
    with fs.start(monthly(events("12h")), snapshots=tmp_path, client=client) as again:
        assert again.status()["run"] == 2


def test_two_jobs_on_one_cluster_and_the_same_name_twice(client: Client, tmp_path: Path) -> None:
    given = rows(300)
    events = fs.from_arrow(pa.Table.from_pylist(given, SCHEMA), event_time="at", lateness="12h")
    with (
        fs.start(monthly(events, "one"), snapshots=tmp_path / "one", client=client) as one,
        fs.start(monthly(events, "two"), snapshots=tmp_path / "two", client=client, partitions=3) as two,
    ):
        one.wait(60)
        two.wait(60)
        assert answered(one.to_table("one")) == answered(two.to_table("two")) == expected(given)
        with pytest.raises(fs.InvalidFlow, match="of this name is running"):
            fs.start(monthly(events, "one"), snapshots=tmp_path / "other", client=client)
        assert list(one) == ["one", "one_late", "dead_letters"]


def test_the_job_outlives_its_driver(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append(path, rows(100))
    program = f"""
import pyarrow as pa, flowstate as fs
from distributed import Client
if __name__ == "__main__":
    schema = pa.schema({{"customer": pa.string(), "amount": pa.decimal128(12, 2)}})
    view = fs.scan_files({str(path)!r}, schema=schema, follow=True).group_by("customer").agg(events=fs.len()).view("left")
    fs.start(view, snapshots={str(tmp_path / "snapshots")!r}, client=Client({client.scheduler.address!r}))
    import os; os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with fs.attach("left", client) as job:
        append(path, rows(50, seed=5))
        until(lambda: sum(job.to_table("left")["events"].to_pylist()) == 150)
    with pytest.raises(fs.InvalidFlow, match="no job 'left'"):
        fs.attach("left", client)


def test_a_killed_worker_comes_back_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    given = rows(4000, seed=3)
    append(path, given[:2000])
    events = fs.scan_files(path, schema=SCHEMA, event_time="at", lateness="12h", follow=True)
    with (
        two_workers() as client,
        fs.start(monthly(events), snapshots=tmp_path / "snapshots", every="200ms", client=client) as job,
    ):
        until(lambda: job.sql("select sum(events) from monthly").fetchall() == [(2000,)])
        workers = {number: each["worker"] for number, each in job.status()["partitions"].items()}
        assert len(set(workers.values())) == 2, workers
        os.kill(client.run(os.getpid)[workers["0"]], signal.SIGKILL)
        append(path, given[2000:])
        until(lambda: job.sql("select sum(events) from monthly").fetchall() == [(4000,)], 40)
        assert answered(job.to_table("monthly")) == expected(given)
        assert {number: each["epoch"] for number, each in job.status()["partitions"].items()} == {"0": 2, "1": 1}


def test_its_own_cluster_is_gone_after_stop(tmp_path: Path) -> None:
    events = fs.from_arrow(pa.Table.from_pylist(rows(50), SCHEMA), event_time="at")
    before = set(psutil.Process().children(recursive=True))
    for number in (1, 2):
        with fs.start(monthly(events), snapshots=tmp_path / str(number)) as job:
            job.wait(60)
            port = int(job.address.rsplit(":", 1)[1])
        left = [
            each
            for each in psutil.Process().children(recursive=True)
            if each not in before and "tracker" not in str(each.cmdline())
        ]
        assert left == []
        assert all(
            each.laddr.port != port for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN
        )


def test_bad_input_is_told_at_once(client: Client, tmp_path: Path) -> None:
    events = fs.from_arrow(pa.Table.from_pylist(rows(5), SCHEMA), event_time="at")
    with pytest.raises(fs.InvalidFlow, match="start takes views"):
        fs.start(events, snapshots=tmp_path, client=client)
    with pytest.raises(fs.InvalidFlow, match="number of partitions"):
        fs.start(monthly(events), snapshots=tmp_path, client=client, partitions=1000)
    with pytest.raises(fs.InvalidFlow, match="could both win"):
        fs.start(monthly(events), snapshots="http://127.0.0.1/x", client=client)
    with pytest.raises(fs.InvalidFlow, match="memory://"):
        fs.start(monthly(events), snapshots="memory://x")
    with pytest.raises(fs.FlowstateError, match="no-such-file"):
        fs.start(
            monthly(fs.scan_files(tmp_path / "no-such-file.jsonl", schema=SCHEMA, event_time="at")),
            snapshots=tmp_path,
            client=client,
        )


def test_everything_in_one_process_with_snapshots_in_memory() -> None:
    given = rows(400)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        for run in (1, 2):
            events = fs.from_arrow(pa.Table.from_pylist(given, SCHEMA), event_time="at", lateness="12h", splits=2)
            with fs.start(monthly(events), snapshots="memory://in-one-process", client=client) as job:
                job.wait(30)
                assert job.status()["run"] == run
                assert answered(job.to_table("monthly")) == expected(given)


def test_a_total_that_does_not_fit_stops_nothing_but_its_own_sink(client: Client, tmp_path: Path) -> None:
    given = pa.table(
        {
            "who": ["rich", "rich", "anna", "bob"],
            "much": pa.array([2**62, 2**62, 5, 6], pa.int64()),
            "at": pa.array([BEGIN, BEGIN, BEGIN, BEGIN + timedelta(days=400)], pa.timestamp("ms", "UTC")),
        }
    )
    events = fs.from_arrow(given, event_time="at")
    view = (
        events.group_by("who", month=fs.window("at", every="1mo", grace="1d", keep="1d"))
        .agg(total=fs.col("much").sum())
        .view("v")
    )
    other = events.group_by("who", year=fs.window("at", every="1y", grace="1d")).agg(n=fs.len()).view("other")
    sinks = view.final().sink_parquet(tmp_path / "totals"), other.final().sink_parquet(tmp_path / "counts")
    with fs.start(view, other, *sinks, snapshots=tmp_path / "snapshots", every="200ms", client=client) as job:
        until(
            lambda: (
                sum(each["events"] if "events" in each else each["n"] for each in job.to_table("other").to_pylist())
                == 4
            )
        )
        until(lambda: any("does not fit" in text for text in problems(job).values()))
        with pytest.raises(fs.FlowstateError, match="rich"):
            job["v"]["rich"]
        assert job.sql("select sum(n) from other").fetchall() == [(4,)]
        until(lambda: job.status()["saved_cut"].get("number", 0) > 2)
        with pytest.raises(fs.Unavailable, match="not at its end"):
            job.wait(timeout=0.5)
    assert sum(ds.dataset(tmp_path / "counts").to_table()["n"].to_pylist()) == 4


def problems(job: fs.Job) -> dict[str, str]:
    return {
        name: text
        for each in job.status()["partitions"].values()
        for name, text in each["report"].get("problems", {}).items()
    }


def test_the_end_of_the_input_makes_no_window_old(client: Client, tmp_path: Path) -> None:
    """Windows are forgotten by event time alone, and handed over once, also beside a view that keeps everything."""
    given = rows(900, days=300)
    events = fs.from_arrow(pa.Table.from_pylist(given, SCHEMA), event_time="at", lateness="12h", splits=2)
    views = [monthly(events, "kept"), monthly(events, "recent", keep="60d")]
    sinks = [view.final().sink_parquet(tmp_path / view.name, partition_by="month") for view in views]
    with fs.start(*views, *sinks, snapshots=tmp_path / "snapshots", every="200ms", client=client) as job:
        job.wait(60)
        assert answered(job.to_table("kept")) == expected(given)
        recent = answered(job.to_table("recent"))
        assert {start for _, start in recent} == {
            start for _, start in expected(given) if start >= BEGIN + timedelta(days=210)
        }
        assert recent.items() <= expected(given).items()
    for view in views:
        written = ds.dataset(tmp_path / view.name, partitioning="hive").to_table()
        assert written.num_rows == len(expected(given))
        assert sum(written["events"].to_pylist()) == len(given)


def test_a_drained_job_says_that_it_reads_no_more(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append(path, rows(30))
    events = fs.scan_files(path, schema=SCHEMA, event_time="at", lateness="12h", follow=True)
    for run in (1, 2):
        with fs.start(monthly(events), snapshots=tmp_path / "snapshots", client=client) as job:
            assert ("drained" in job.status()["problems"]) == (run == 2)
            job.drain(60)
            assert sum(job.to_table("monthly")["events"].to_pylist()) == 30
        append(path, rows(5))
    assert str(path) in job.status()["problems"]["drained"]
