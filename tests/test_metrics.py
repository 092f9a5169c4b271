"""What Prometheus is told: parsed by its own client, equal to the job's status, documented, and used by the Grafana dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distributed import Client, LocalCluster, Worker
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

import flowstate as fs
from flowstate.dashboard.metrics import METRICS, OTHERS, SPLITS, Samples, _job
from flowstate.dashboard.scheduler import Watched

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fs.Job]:
    """With a keyed view, a table without a key and a sink; of three partitions in two workers that share this process."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "logs").mkdir()
    rows = [{"key": f"k{n % 50}", "n": n, "at": f"2026-01-01T00:00:{n % 60:02}Z"} for n in range(1000)]
    (folder / "logs" / "one.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + "nothing to read\n")
    schema = pa.schema({"key": pa.string(), "n": pa.int64(), "at": pa.timestamp("ms", "UTC")})
    events = fs.scan_files(
        folder / "logs", format="json", schema=schema, event_time="at", lateness="1h", follow=True
    )  # fmt: skip
    totals = events.group_by("key").agg(total=fs.col("n").sum()).view("totals")
    sink = events.sink_json(folder / "out")
    with (
        LocalCluster(n_workers=2, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        fs.start(totals, sink, snapshots=folder / "saved", every="200ms", client=client, partitions=3) as job,
    ):
        until(lambda: sum(each["report"].get("rows", 0) for each in job.status()["partitions"].values()) == 1000)
        yield job


def scraped(address: str) -> dict[str, Metric]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = [each for each in text_string_to_metric_families(text) if each.name.startswith("flowstate_")]
    assert len({each.name for each in found}) == len(found), "a metric is there twice"
    return {each.name: each for each in found}


def of_workers(job: fs.Job) -> dict[str, Metric]:
    """The workers of this process have one registry, so any of them tells of both."""

    def port(dask_worker: Worker) -> int:
        return int(dask_worker.http_server.port)

    ports = job.client.run(port)
    return scraped(f"http://127.0.0.1:{min(ports.values())}")


def values(metric: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    return {tuple(each.labels[label] for label in labels): each.value for each in metric.samples}


def documented() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Of docs/metrics.md, by name: who tells it, its kind and its labels."""
    found, place = {}, ""
    for line in (DOCS / "metrics.md").read_text().splitlines():
        if line.startswith("#"):
            place = {"### Of workers": "worker", "### Of the scheduler": "scheduler"}.get(line, "")
        if place and (match := re.match(r"\| `(\w+)` \| (\w+) \| (.*?) \| (.+) \|$", line)):
            found[match[1]] = (place, match[2], tuple(re.findall(r"`(\w+)`", match[3])))
    return found


def test_the_page_lists_what_there_is() -> None:
    assert documented() == {name: (each.place, each.kind, each.labels) for name, each in METRICS.items()}


def test_names_have_the_units_and_endings_that_prometheus_asks_for() -> None:
    for name, each in METRICS.items():
        assert name.endswith("_total") == (each.kind == "counter")
        assert not re.search(r"_(ms|millis|kb|mb|minutes|percent)(_|$)", name)


def test_grafana_uses_only_names_and_labels_that_exist() -> None:
    text = (DOCS / "grafana" / "flowstate.json").read_text()
    board = json.loads(text)
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [each["expr"] for each in board["annotations"]["list"]]
    queries += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    assert len(queries) > 10
    for query in queries:
        names = [re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"flowstate_\w+", query)]
        assert names, query
        allowed = {"job", "le"}.union(*(METRICS[name].labels for name in names))
        grouped = [label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r", *", group)]
        matched = re.findall(r"[{,](\w+)(?:=~|!=|=)", query)
        assert {*grouped, *matched} <= allowed, query
    assert set(re.findall(r"flowstate_\w+?(?=_bucket|_sum|_count|\W)", text)) <= METRICS.keys()


def test_workers_tell_of_their_partitions(job: fs.Job) -> None:
    until(lambda: len(of_workers(job)) > 10 and "flowstate_sink_waiting_bytes" in of_workers(job))
    found, status = of_workers(job), job.status()["partitions"]
    reports = {number: each["report"] for number, each in status.items()}
    assert values(found["flowstate_rows_applied"], "job", "partition") == {
        (job.name, number): each["rows"] for number, each in reports.items()
    }
    assert values(found["flowstate_keys"], "partition", "view") == {
        (number, "totals"): each["keys"]["totals"] for number, each in reports.items()
    }
    appended = values(found["flowstate_rows_appended"], "partition", "view")
    assert sum(appended.values()) == 1001  # the stream, and a dead letter
    until(lambda: min(values(of_workers(job)["flowstate_state_bytes"], "partition").values()) > 1000)
    assert all(delay > 3600 for delay in values(found["flowstate_watermark_delay_seconds"], "partition").values())
    assert all(0 <= age < 100 for age in values(found["flowstate_snapshot_age_seconds"], "partition").values())
    assert set(values(found["flowstate_sink_waiting_seconds"], "partition", "sink")) == {(n, "0") for n in reports}


def test_queries_are_counted_and_timed_where_they_are_answered(job: fs.Job) -> None:
    def asked() -> dict[str, float]:
        found: dict[str, float] = {}
        for (kind, _), count in values(of_workers(job)["flowstate_queries"], "kind", "partition").items():
            found[kind] = found.get(kind, 0.0) + count
        return found

    until(lambda: "flowstate_queries" in of_workers(job))
    before = asked()
    for number in range(7):
        assert job["totals"][f"k{number}"].num_rows == 1
    assert job.sql("select count(*) from totals").fetchall() == [(50,)]
    after = until(lambda: (now := asked())["scan"] >= before["scan"] + 3 and now)
    assert after["lookup"] == before["lookup"] + 7
    for each in of_workers(job)["flowstate_query_seconds"].samples:
        assert each.value >= 0
    buckets: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], float] = {}
    for each in of_workers(job)["flowstate_query_seconds"].samples:
        place = (each.labels["partition"], each.labels["kind"])
        if each.name.endswith("_bucket"):
            buckets.setdefault(place, []).append(each.value)
        elif each.name.endswith("_count"):
            counts[place] = each.value
    for place, below in buckets.items():
        assert below == sorted(below)
        assert below[-1] == counts[place]


def test_the_scheduler_tells_of_the_job(job: fs.Job) -> None:
    address = f"http://127.0.0.1:{job.client.cluster.scheduler.http_server.port}"
    found = until(lambda: "flowstate_cut_age_seconds" in (now := scraped(address)) and now)
    assert values(found["flowstate_up"], "job") == {(job.name,): 1}
    assert values(found["flowstate_partitions"], "job", "state")[job.name, "live"] == 3
    assert values(found["flowstate_recoveries"], "job") == {(job.name,): 0}
    split = next(iter(job.status()["splits"]))
    until(lambda: values(scraped(address)["flowstate_split_lag_offsets"], "split") == {(split,): 0})


def test_everything_that_is_told_is_documented(job: fs.Job) -> None:
    address = f"http://127.0.0.1:{job.client.cluster.scheduler.http_server.port}"
    until(lambda: "flowstate_cut_age_seconds" in scraped(address))
    told = {**of_workers(job), **scraped(address)}
    for name, metric in told.items():
        known = METRICS[name if metric.type != "counter" else f"{name}_total"]
        assert metric.type == known.kind
        assert metric.documentation == known.text
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == {"job", *known.labels}
    assert {each if told[each].type != "counter" else f"{each}_total" for each in told} == METRICS.keys()


def test_splits_without_number_have_labels_with_one() -> None:
    splits = {f"split {n}": {"lag": n} for n in range(10 * SPLITS)}
    watched = Watched()
    watched.now = {"paused": None, "problems": {}, "partitions": {}, "splits": splits, "saved_cut": {}, "at": 0.0}
    samples = Samples()
    _job("job", watched, samples)
    lags: dict[tuple[str, ...], Any] = samples.numbers["flowstate_split_lag_offsets"]
    assert len(lags) == SPLITS + 1
    assert sum(lags.values()) == sum(range(10 * SPLITS))
    assert lags["job", OTHERS] == sum(range(9 * SPLITS))


WITHOUT = """
import sys, urllib.request
sys.modules["bokeh"] = sys.modules["prometheus_client"] = None
from distributed import Client, LocalCluster
from flowstate.dashboard.scheduler import Dashboard
from flowstate.dashboard.worker import WorkerMetrics
with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
    client.register_plugin(Dashboard())
    client.register_plugin(WorkerMetrics())
    place = f"http://127.0.0.1:{cluster.scheduler.http_server.port}"
    print(urllib.request.urlopen(place + "/flowstate.json").read().decode())
    print(b"not available" in urllib.request.urlopen(place + "/metrics").read())
"""


def test_without_the_extras_the_json_is_there_and_nothing_fails() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ['{"jobs": {}}', "True"], done.stderr
    assert "Traceback" not in done.stderr
