"""Starting a job: on a cluster of its own, or on the one that `client` is connected to."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING, Any

from flowstate.api import arguments
from flowstate.api.job import Job, directory_source
from flowstate.api.own_cluster import own_cluster
from flowstate.api.remote import request, unwrap
from flowstate.api.stream import Flow, Output, View
from flowstate.clock import SystemClock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.spec import JobPlan
from flowstate.runtime.job_spec import JobSpec

if TYPE_CHECKING:
    from distributed import Client, Scheduler


def start(
    *outputs: Flow,
    snapshots: str | os.PathLike[str],
    every: str = "10s",
    name: str | None = None,
    client: Client | None = None,
    partitions: int | None = None,
    keep: int = 10,
    idle_after: str = "30s",
    key_groups: int = 128,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 120.0,
) -> Job:
    """Run views and sinks as one job; returns as soon as every partition serves.

    `snapshots` is a folder or an fsspec URL (local, ``s3://``, ``memory://`` for one process): a job resumes from what is there. `every`
    is the time between snapshots, `keep` how many stay. Without `client` a LocalCluster is made, and closed by `job.stop()`.
    `partitions` defaults to the number of workers (to that of the snapshots when it resumes). A split without a row for `idle_after`
    holds no window open any longer. Raises `InvalidFlow` for what must be mended first (flow, source, store), `Unavailable` for what is
    away now, or does not come up within `timeout` seconds.
    """
    plan = compile_plan([_node(each) for each in outputs])
    url = arguments.place("snapshots", snapshots)
    if url.startswith("memory://") and client is None:
        raise InvalidFlow(
            "memory:// snapshots live within one process; pass the client of a LocalCluster(processes=False), or use a folder"
        )
    if client is not None:
        arguments.client(client)
    storage_options = arguments.options("storage_options", storage_options)
    spec = JobSpec(
        name="" if name is None else arguments.name("name", name),
        plan=plan,
        snapshots=url,
        storage_options=storage_options,
        partitions=0 if partitions is None else arguments.whole("partitions", partitions, 1),
        every=arguments.period("every", every, 0.05),
        keep=arguments.whole("keep", keep, 1),
        key_groups=arguments.whole("key_groups", key_groups, 1),
        idle_after=arguments.period("idle_after", idle_after, 0.001),
    )
    timeout = arguments.seconds("timeout", timeout)
    _check(plan, url, storage_options)
    with ExitStack() as stack:
        Thread(target=_warm_up, daemon=True).start()  # while the cluster comes up: lookups here need the key kernels
        owns = client is None
        if client is None:
            client = own_cluster(stack)
        job = _start(client, spec, timeout, stack)
        job._owned = stack.pop_all()
        if owns:
            atexit.register(job._at_exit)  # its cluster ends with this process, and not before
        return job


def _start(client: Client, asked: JobSpec, timeout: float, stack: ExitStack) -> Job:
    import cloudpickle

    from flowstate.runtime.host import Host
    from flowstate.runtime.supervisor import Supervisor
    from flowstate_flight.client import FlightReader

    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if workers == 0:
        raise Unavailable("the cluster has no workers; start some and try again")
    saved = _saved_job(asked.snapshots, asked.storage_options)
    spec = replace(
        asked,
        name=asked.name or (saved.name if saved else asked.plan.routes[0].table),
        partitions=asked.partitions or (saved.partitions if saved else min(workers, asked.key_groups)),
    )
    if spec.partitions > spec.key_groups:
        raise InvalidFlow(
            "the number of partitions is between 1 and the number of key groups",
            partitions=spec.partitions,
            key_groups=spec.key_groups,
        )
    client.register_plugin(Supervisor())
    if not client.run_on_scheduler(_has_hosts):  # registering again would replace the hosts, and end what they host
        client.register_plugin(Host())
    answer = client.sync(client.scheduler.flowstate_start, spec=cloudpickle.dumps(spec))
    unwrap(answer)
    reader = stack.enter_context(FlightReader(directory_source(client, spec.name), spec.name))
    job = Job(spec.name, client, reader, ExitStack())
    try:
        _wait_until_up(job, timeout)
    except BaseException:
        request(client, "stop", spec.name, snapshot=False)
        raise
    return job


def _warm_up() -> None:
    import pyarrow as pa

    from flowstate.plan.kernel import compiling
    from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes

    with compiling():
        owner_of_groups(key_groups(route_hashes([pa.array([""])], 0), 1), 1, 1)


def _has_hosts(dask_scheduler: Scheduler) -> bool:
    from flowstate.runtime.host import NAME

    return NAME in dask_scheduler.worker_plugins


def _wait_until_up(job: Job, timeout: float) -> None:
    from threading import Event

    clock, pause = SystemClock(), Event()
    deadline = clock.monotonic() + timeout
    while True:
        status = job.status()
        if status["ready"] or status["state"] == "finished":
            return
        reasons = {number: each["reason"] for number, each in status["partitions"].items() if each["reason"]}
        if any(each["state"] == "failed" for each in status["partitions"].values()):
            raise Unavailable("the job did not come up", job=job.name, reasons=reasons)
        if clock.monotonic() > deadline:
            raise Unavailable(
                "the job did not come up in time", job=job.name, reasons=reasons, problems=status["problems"]
            )
        pause.wait(0.02)


def _node(output: Flow) -> Any:
    if isinstance(output, View | Output):
        return output.node
    raise InvalidFlow(
        "start takes views and sinks; end a flow with .view(name), or with .final().sink_parquet(url)",
        given=type(output).__name__,
    )


def _check(plan: JobPlan, url: str, storage_options: Mapping[str, Any]) -> None:
    """What would fail on the cluster, told here and now: the store, the sources, the sinks."""
    from flowstate.sink.files import ParquetSink
    from flowstate.source import make_source
    from flowstate.store import Store

    Store.open(url, **storage_options).probe()
    for scan in plan.sources:
        make_source(scan).splits()
    for sink in plan.sinks:
        ParquetSink(sink).check(plan.tables[sink.table].schema)


def _saved_job(url: str, storage_options: Mapping[str, Any]) -> Any:
    from flowstate.snapshot.job_record import JobChain
    from flowstate.store import Store

    return JobChain(Store.open(url, **storage_options)).load()
