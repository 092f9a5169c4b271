"""Starting a job: on a cluster of its own, or on the one that `client` is connected to."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal

from flowstate.api import arguments
from flowstate.api.finding import saved_states
from flowstate.api.job import Job, job_reader
from flowstate.api.own_cluster import own_cluster
from flowstate.api.partial import answer_partial
from flowstate.api.stream import Flow, Output, View
from flowstate.clock import SystemClock
from flowstate.errors import Fenced, FlowstateError, InvalidFlow, Unavailable
from flowstate.plan.compile import compile as compile_plan
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.reply import unwrap

if TYPE_CHECKING:
    from distributed import Client, Scheduler

    from flowstate.runtime.security import Security
    from flowstate.view.rights import Access
    from flowstate.view.tls import Tls


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
    takeover: bool = False,
    spill: str = "10GB",
    access: Access | Literal["none"] | None = None,
    tls: Tls | None = None,
) -> Job:
    """Run views and sinks as one job; returns as soon as every partition serves.

    `snapshots` is a folder or an fsspec URL (local, ``s3://``, ``memory://`` for one process): a job resumes from what is there. `every`
    is the time between snapshots, `keep` how many stay. Without `client` a LocalCluster is made, and closed by `job.stop()`.
    `partitions` defaults to the number of workers (to that of the snapshots when it resumes). A split without a row for `idle_after`
    holds no window open any longer. A job that runs already is refused, here or on another cluster; with `takeover` it is replaced: the
    older run is fenced, and says so. While sinks are away their output waits in the snapshots, up to `spill` in all; beyond it the
    sources pause, and everything that was read is still answered.

    Each worker is asked on a port of its own, at the address where Dask reaches it. With `access`, nobody reads there without a credential
    (`flowstate.Access`), and sees only what that allows; `tls` encrypts (`flowstate.Tls`). Without an access everybody who reaches the
    port may read everything, so that is refused for workers that others than their own machine reach, unless it is said:
    ``access="none"``. Both are settled by the first job on a cluster, for as long as its workers live.

    Raises `InvalidFlow` for what must be mended first (flow, source, store), `Unavailable` for what is away now, or does not come up
    within `timeout` seconds.
    """
    spec = asked(
        outputs, snapshots, every=every, name=name, partitions=partitions, keep=keep, idle_after=idle_after,
        key_groups=key_groups, storage_options=storage_options, takeover=takeover, spill=spill,
    )  # fmt: skip
    if spec.snapshots.startswith("memory://") and client is None:
        raise InvalidFlow(
            "memory:// snapshots live within one process; pass the client of a LocalCluster(processes=False), or use a folder"
        )
    if client is not None:
        arguments.client(client)
    timeout = arguments.seconds("timeout", timeout)
    _check(spec)
    with ExitStack() as stack:
        Thread(target=_warm_up, daemon=True).start()  # while the cluster comes up: lookups here need the key kernels
        owns = client is None
        if client is None:
            client = own_cluster(stack)
        job = _start(client, spec, timeout, stack, access, tls)
        job._owned = stack.pop_all()
        if owns:
            atexit.register(job._at_exit)  # its cluster ends with this process, and not before
        return job


def asked(
    outputs: Sequence[Flow],
    snapshots: str | os.PathLike[str],
    *,
    every: str,
    name: str | None,
    partitions: int | None,
    keep: int,
    idle_after: str,
    key_groups: int,
    storage_options: Mapping[str, Any] | None,
    takeover: bool,
    spill: str,
) -> JobSpec:
    """The arguments of `start` as a job, as far as they can be understood without touching anything. InvalidFlow if they cannot."""
    plan = compile_plan([_node(each) for each in outputs])
    return JobSpec(
        name="" if name is None else arguments.name("name", name),
        plan=plan,
        snapshots=arguments.place("snapshots", snapshots),
        storage_options=arguments.options("storage_options", storage_options),
        partitions=0 if partitions is None else arguments.whole("partitions", partitions, 1),
        every=arguments.period("every", every, 0.05),
        keep=arguments.whole("keep", keep, 1),
        key_groups=arguments.whole("key_groups", key_groups, 1),
        idle_after=arguments.period("idle_after", idle_after, 0.001),
        spill=arguments.size("spill", spill),
        takeover=arguments.flag("takeover", takeover),
    )


def _start(
    client: Client,
    asked: JobSpec,
    timeout: float,
    stack: ExitStack,
    access: Access | Literal["none"] | None,
    tls: Tls | None,
) -> Job:
    import cloudpickle

    from flowstate.dashboard.scheduler import Dashboard
    from flowstate.dashboard.worker import WorkerMetrics
    from flowstate.runtime.host import Host
    from flowstate.runtime.security import Security
    from flowstate.runtime.supervisor import Supervisor

    if (workers := _workers(client)) == 0:
        raise Unavailable("the cluster has no workers; start some and try again")
    saved = _saved_job(asked.snapshots, asked.storage_options)
    spec = replace(
        asked,
        name=asked.name or (saved.name if saved else asked.plan.name),
        partitions=asked.partitions or (saved.partitions if saved else min(workers, asked.key_groups)),
    )
    if spec.partitions > spec.key_groups:
        raise InvalidFlow(
            "the number of partitions is between 1 and the number of key groups",
            partitions=spec.partitions,
            key_groups=spec.key_groups,
        )
    wanted, hosted = Security(access, tls), client.run_on_scheduler(_has_hosts)
    if not hosted:
        _check_reach(client, access)
    client.register_plugin(Supervisor(wanted))
    client.register_plugin(Dashboard())
    security = client.run_on_scheduler(_security)  # that of the first job here, which every job has
    if (access, tls) != (None, None) and wanted.fingerprint != security.fingerprint:
        raise InvalidFlow(
            "the workers of this cluster serve a job already, with the access= and tls= that they were started with; leave both out, or "
            "give the same"
        )
    if not hosted:  # registering again would replace the hosts, and end what they host
        client.register_plugin(Host(security=security, answer_partial=answer_partial))
        client.register_plugin(WorkerMetrics())
    answer = client.sync(client.scheduler.flowstate_start, spec=cloudpickle.dumps(spec))
    run = int(unwrap(answer)["run"])
    states = saved_states(spec.snapshots, spec.storage_options, spec.name)
    reader = stack.enter_context(job_reader(client, spec.name, states))
    job = Job(spec.name, client, reader, ExitStack(), states.store)
    job._run = run
    try:
        _wait_until_up(job, timeout)
    except BaseException:
        with suppress(FlowstateError):  # fenced: what runs now is another's
            job._ask("stop", snapshot=False)
        raise
    return job


def _workers(client: Client, patience: float = 10.0) -> int:
    """How many there are. If there is none, a nanny may be starting one just now."""
    clock, pause = SystemClock(), Event()
    deadline = clock.monotonic() + patience
    while not (found := len(client.scheduler_info(n_workers=-1)["workers"])) and clock.monotonic() < deadline:
        pause.wait(0.1)
    return found


def _check_reach(client: Client, access: Access | Literal["none"] | None) -> None:
    """Told here, not by a worker: who may be reached from elsewhere lets nobody in without having been told to."""
    from flowstate.runtime.host import reached_at
    from flowstate_flight.auth import server_options

    for address in client.scheduler_info(n_workers=-1)["workers"]:
        server_options(reached_at(address), access)


def _warm_up() -> None:
    import pyarrow as pa

    from flowstate.plan.kernel import compiling
    from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes

    with compiling():
        owner_of_groups(key_groups(route_hashes([pa.array([""])], 0), 1), 1, 1)


def _has_hosts(dask_scheduler: Scheduler) -> bool:
    from flowstate.runtime.host import NAME

    return NAME in dask_scheduler.worker_plugins


def _security(dask_scheduler: Scheduler) -> Security:
    from flowstate.runtime.supervisor import NAME

    found: Security = dask_scheduler.plugins[NAME].security
    return found


def _wait_until_up(job: Job, timeout: float) -> None:
    clock, pause = SystemClock(), Event()
    deadline = clock.monotonic() + timeout
    while True:
        status = job.status()
        if status["ready"] or status["state"] == "finished":
            return
        if status["state"] in ("fenced", "stopped"):
            raise Fenced(status["problems"].get("job", f"the job was {status['state']} as it came up"), job=job.name)
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
        "start takes views and sinks; end a flow with .view(name), or with a sink such as .sink_parquet(url)",
        given=type(output).__name__,
    )


def _check(spec: JobSpec) -> None:
    """What would fail on the cluster, told here and now: the store, the sources, the sinks."""
    from flowstate.sink import make_sink
    from flowstate.source import make_source
    from flowstate.store import Store

    Store.open(spec.snapshots, **spec.storage_options).probe()
    for scan in spec.plan.sources:
        make_source(scan).splits()
    for sink in spec.plan.sinks:
        make_sink(sink).check(sink.schema(spec.plan.tables[sink.table]))


def _saved_job(url: str, storage_options: Mapping[str, Any]) -> Any:
    from flowstate.snapshot.job_record import JobChain
    from flowstate.store import Store

    return JobChain(Store.open(url, **storage_options)).load()
