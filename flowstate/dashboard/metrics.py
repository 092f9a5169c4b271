"""What Prometheus is told under Dask's ``/metrics``: by each worker of its partitions, by the scheduler of jobs as a whole.

Nothing is counted for it: figures are looked up when they are asked for. docs/metrics.md lists all of them, for people.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from flowstate.plan.position import FOREVER, NEVER
from flowstate.runtime.counted import BOUNDS, CountedPartition
from flowstate.runtime.status import describe

if TYPE_CHECKING:
    from flowstate.dashboard.figures import Figures
    from flowstate.dashboard.scheduler import Dashboard, Watched

logger = logging.getLogger("flowstate")
#: Splits of a job that have a lag of their own, those with the greatest; what the others have is one, `OTHERS`.
SPLITS = 100
OTHERS = "others"


@dataclass(frozen=True)
class Metric:
    """`place`: who tells it. Labels beside ``job`` are in `labels`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    place: Literal["worker", "scheduler"]
    labels: tuple[str, ...]
    text: str


def _worker(name: str, kind: Literal["counter", "gauge", "histogram"], text: str, *labels: str) -> Metric:
    return Metric(f"flowstate_{name}", kind, "worker", ("partition", *labels), text)


def _scheduler(name: str, kind: Literal["counter", "gauge", "histogram"], text: str, *labels: str) -> Metric:
    return Metric(f"flowstate_{name}", kind, "scheduler", labels, text)


METRICS = {
    each.name: each
    for each in (
        _worker("rows_applied_total", "counter", "Rows applied to keyed state since this incarnation began."),
        _worker("rows_appended_total", "counter", "Rows ever given to a table without a key.", "view"),
        _worker("keys", "gauge", "Rows of a keyed view, one per key and window.", "view"),
        _worker("state_bytes", "gauge", "Memory of all tables, with their indexes."),
        _worker("watermark_delay_seconds", "gauge", "How far the watermark is before the present."),
        _worker("snapshot_age_seconds", "gauge", "Time since what was saved last was taken."),
        _worker("snapshot_write_seconds", "gauge", "How long the last save took."),
        _worker("splits_filling", "gauge", "Splits that are read again to catch up with their readers."),
        _worker("problems", "gauge", "What troubles it just now, a count; job.status() has the words."),
        _worker("queries_total", "counter", "What it was asked.", "kind"),
        _worker("query_seconds", "histogram", "How long answers took here; a scan, until its last row was taken.", "kind"),
        _worker("subscribers", "gauge", "Who follows its changes."),
        _worker("sink_waiting_bytes", "gauge", "Output that its sink has not taken yet.", "sink"),
        _worker("sink_waiting_seconds", "gauge", "How long the oldest of it waits.", "sink"),
        _worker("sink_rejected_rows_total", "counter", "Rows that the other side refused for good.", "sink"),
        _scheduler("up", "gauge", "1 while every partition serves and every split has a reader, else 0."),
        _scheduler("run", "gauge", "Number of the run; it grows with every start."),
        _scheduler("paused", "gauge", "1 while nothing is read because sinks are too far behind."),
        _scheduler("job_problems", "gauge", "What troubles the job as a whole, a count."),
        _scheduler("partitions", "gauge", "Partitions by what they are doing.", "state"),
        _scheduler("split_lag_offsets", "gauge", "How far its reader, or a partition that catches up with it, is from its end.", "split"),
        _scheduler("cut_age_seconds", "gauge", "Time since all partitions were saved at one position."),
        _scheduler("failures_total", "counter", "Partitions that were lost or did not come up, in this run."),
        _scheduler("recoveries_total", "counter", "Partitions that were back, in this run."),
        _scheduler("away_seconds_total", "counter", "How long these were away, in all."),
    )
}  # fmt: skip

#: What a partition may be doing.
STATES = ("vacant", "claiming", "starting", "live", "ended", "failed")


class Samples:
    """Numbers by metric and labels."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[tuple[str, ...], Any]] = {}

    def put(self, name: str, number: Any, *labels: object) -> None:
        if number is not None:
            self.numbers.setdefault(f"flowstate_{name}", {})[tuple(map(str, labels))] = number


def of_worker(figures: Figures, samples: Samples) -> None:
    """All partitions of a worker process."""
    for served in figures.served():
        pump, at = served.pump, (served.job, served.partition)
        report = describe(pump)
        samples.put("problems", len(report["problems"]), *at)
        _queries(served, samples)
        if "rows" not in report:
            continue
        wall, saved = figures.host.clock.wall(), report["snapshot"]
        samples.put("rows_applied_total", report["rows"], *at)
        for view, rows in report["keys"].items():
            samples.put("keys", rows, *at, view)
        samples.put("state_bytes", figures.size(pump), *at)
        if report["watermark"] not in (NEVER, FOREVER):
            samples.put("watermark_delay_seconds", wall - report["watermark"] / 1e6, *at)
        samples.put("snapshot_age_seconds", max(0.0, wall - saved["at"]), *at)
        samples.put("snapshot_write_seconds", saved["seconds"], *at)
        samples.put("splits_filling", len(report["filling"]), *at)
        for number, sink in enumerate(report["sinks"]):
            samples.put("sink_waiting_bytes", sink["bytes"], *at, number)
            samples.put("sink_waiting_seconds", sink["oldest"], *at, number)
            samples.put("sink_rejected_rows_total", sink["rejected"], *at, number)
        for view, rows in figures.appended(pump).items():
            samples.put("rows_appended_total", rows, *at, view)


def _queries(served: CountedPartition, samples: Samples) -> None:
    at = (served.job, served.partition)
    samples.put("subscribers", served.subscribers(), *at)
    for kind, queries in served.queries.items():
        samples.put("queries_total", queries.total, *at, kind)
        samples.put("query_seconds", (list(queries.counts), queries.seconds), *at, kind)


def of_scheduler(dashboard: Dashboard, samples: Samples) -> None:
    """All jobs of a scheduler that go on."""
    for name, job in dashboard.running().items():
        watched = dashboard.jobs.get(name)
        if job.state in ("stopped", "fenced") or watched is None or not watched.now:
            continue
        _job(name, watched, samples)
        samples.put("up", int(job.ready or job.state == "finished"), name)
        samples.put("run", job.spec.run, name)
        journal = job.journal
        samples.put("failures_total", journal.failures.total(), name)
        samples.put("recoveries_total", journal.recoveries.total(), name)
        samples.put("away_seconds_total", sum(journal.away.values()), name)


def _job(name: str, watched: Watched, samples: Samples) -> None:
    now = watched.now
    samples.put("paused", int(now["paused"] is not None), name)
    samples.put("job_problems", len(now["problems"]), name)
    states = [each["state"] for each in now["partitions"].values()]
    for state in STATES:
        samples.put("partitions", states.count(state), name, state)
    lags = {split: each["lag"] for split, each in now["splits"].items() if each["lag"] is not None}
    ranked = sorted(lags, key=lags.__getitem__, reverse=True)
    for split in ranked[:SPLITS]:
        samples.put("split_lag_offsets", lags[split], name, split)
    if ranked[SPLITS:]:
        samples.put("split_lag_offsets", sum(lags[split] for split in ranked[SPLITS:]), name, OTHERS)
    if "at" in now["saved_cut"]:
        samples.put("cut_age_seconds", max(0.0, now["at"] - now["saved_cut"]["at"]), name)


class Collector:
    """Of this process, in which several workers, and the scheduler, may live."""

    def __init__(self) -> None:
        self.workers: weakref.WeakSet[Figures] = weakref.WeakSet()
        self.schedulers: weakref.WeakSet[Dashboard] = weakref.WeakSet()

    def describe(self) -> Iterator[Any]:
        for each in METRICS.values():
            yield _family(each, {})

    def collect(self) -> Iterator[Any]:
        samples = Samples()
        for figures in list(self.workers):
            of_worker(figures, samples)
        for dashboard in list(self.schedulers):
            of_scheduler(dashboard, samples)
        for name, numbers in samples.numbers.items():
            yield _family(METRICS[name], numbers)


def _family(metric: Metric, numbers: dict[tuple[str, ...], Any]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labels = ("job", *metric.labels)
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.text, labels=labels)
        for values, (counts, seconds) in numbers.items():
            below, buckets = 0, []
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(values, buckets, seconds)
        return family
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name.removesuffix("_total"), metric.text, labels=labels)
    for values, number in numbers.items():
        family.add_metric(values, number)
    return family


_collector: Collector | None = None


def _of_process() -> Collector | None:
    """None without prometheus_client: Dask then says under ``/metrics`` what is missing."""
    global _collector
    if _collector is None and find_spec("prometheus_client") is not None:
        from prometheus_client import REGISTRY

        _collector = Collector()
        try:
            REGISTRY.register(_collector)
        except ValueError as error:  # a metric of such a name is there already
            logger.warning("there are no metrics of flowstate in this process: %s", error)
    return _collector


def watch_worker(figures: Figures) -> None:
    if (collector := _of_process()) is not None:
        collector.workers.add(figures)


def watch_scheduler(dashboard: Dashboard) -> None:
    if (collector := _of_process()) is not None:
        collector.schedulers.add(dashboard)


def forget_worker(figures: Figures) -> None:
    if _collector is not None:
        _collector.workers.discard(figures)


def forget_scheduler(dashboard: Dashboard) -> None:
    if _collector is not None:
        _collector.schedulers.discard(dashboard)
