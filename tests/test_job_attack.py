"""What a careless or hostile user and operator does to a running job: it loses nothing, hangs nowhere, and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distributed import Client, LocalCluster

import flowstate as fs

LINE = b'{"customer":"a","amount":%d,"at":"2024-01-%02dT00:00:00Z"}\n'
SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64(), "at": pa.timestamp("ms", "UTC")})


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def totals(source: Any, name: str = "totals") -> Any:
    return source.group_by("customer").agg(total=fs.col("amount").sum(), rows=fs.len()).view(name)


def log(folder: Path, rows: int = 1) -> Any:
    (folder / "log.jsonl").write_bytes(b"".join(LINE % (1, 1 + each % 28) for each in range(rows)))
    return fs.scan_files(folder / "log.jsonl", schema=SCHEMA, event_time="at", follow=True)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"snapshots": None}, "snapshots is a folder or a URL"),
        ({"snapshots": 5}, "snapshots is a folder or a URL"),
        ({"snapshots": ""}, "snapshots is a folder or a URL"),
        ({"every": "0s"}, "every is at least"),
        ({"every": 10}, "a duration is written like"),
        ({"keep": 0}, "keep is a whole number"),
        ({"keep": "x"}, "keep is a whole number"),
        ({"idle_after": "0s"}, "idle_after is at least"),
        ({"partitions": 0}, "partitions is a whole number"),
        ({"partitions": "2"}, "partitions is a whole number"),
        ({"partitions": 1.5}, "partitions is a whole number"),
        ({"key_groups": 0}, "key_groups is a whole number"),
        ({"partitions": 3, "key_groups": 2}, "the number of partitions is between"),
        ({"timeout": "x"}, "timeout is a number of seconds"),
        ({"name": 5}, "name is a text"),
        ({"client": "tcp://nowhere:1"}, "client is a distributed.Client"),
        ({"storage_options": "x"}, "storage_options is a mapping"),
        ({"storage_options": {"a": 1}}, "takes no storage options"),
    ],
)
def test_what_start_refuses(client: Client, tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"snapshots": tmp_path / "snapshots", "client": client} | arguments
    with pytest.raises(fs.InvalidFlow, match=match):
        fs.start(totals(log(tmp_path)), **given)
    assert not list(tmp_path.glob("snapshots/job*"))


REFUSED: dict[str, tuple[Callable[[fs.Job], object], str]] = {
    "no view": (lambda job: job[5], "asked by its name"),  # type: ignore[index]
    "a misspelt view": (lambda job: job["total"], "did you mean 'totals'"),
    "no text": (lambda job: job.sql(None), "takes the text of a query"),  # type: ignore[arg-type]
    "a time limit": (lambda job: job.snapshot(timeout="x"), "timeout is a number"),  # type: ignore[arg-type]
    "another time limit": (lambda job: job.wait("x"), "timeout is a number"),  # type: ignore[arg-type]
    "a column": (lambda job: job["totals"].to_table(columns=["x"]), "has no column 'x'"),
    "a key of another type": (lambda job: job["totals"][5], "a value for 'customer' does not fit"),
    "a statement that writes": (lambda job: job.sql("drop table totals"), "read only"),
    "the file system": (lambda job: job.sql("select * from read_csv('/etc/passwd')").fetchall(), "disabled"),
    "no address": (lambda job: fs.connect(5), "address is a text"),  # type: ignore[arg-type]
    "no place": (lambda job: fs.open_snapshot(None), "url is a folder"),  # type: ignore[arg-type]
    "no number": (lambda job: fs.open_snapshot("x", at="x"), "at is a whole number"),  # type: ignore[arg-type]
    "no rows": (lambda job: fs.from_arrow(5), "from_arrow takes"),  # type: ignore[arg-type]
    "no columns": (lambda job: fs.scan_files("x.json", schema=pa.schema({})), "a column at least"),
}


def test_wrong_questions_and_what_a_stopped_job_says(client: Client, tmp_path: Path) -> None:
    job = fs.start(totals(log(tmp_path)), snapshots=tmp_path / "snapshots", client=client)
    for ask, match in REFUSED.values():
        with pytest.raises(fs.InvalidFlow, match=match):
            ask(job)
    with pytest.raises(fs.Unavailable, match="not at its end yet"):
        job.wait(timeout=0)
    job.stop()
    job.stop()
    job.wait()
    for late in (lambda: job["totals"], lambda: job.sql("select 1 from totals"), job.snapshot):
        with pytest.raises(fs.InvalidFlow, match="this job was stopped"):
            late()
    with pytest.raises(fs.InvalidFlow, match="no job 'totals'"):
        fs.attach("totals", client)
    with fs.open_snapshot(tmp_path / "snapshots") as saved:
        assert saved["totals"]["a"].to_pylist() == [{"customer": "a", "total": 1, "rows": 1}]
