"""What ``flowstate doctor`` looks at, a function for each: it gives what it found, or raises what is wrong and what to do."""

from __future__ import annotations

import errno
import importlib.metadata as metadata
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowstate.clock import SystemClock
from flowstate.errors import FlowstateError, InvalidFlow, Unavailable

#: Bytes of memory and of disk, and open files, below which there is trouble soon.
LEAST_MEMORY, LEAST_DISK, LEAST_FILES = 1 << 30, 1 << 30, 1024
#: Seconds that clocks of two machines may differ.
CLOCKS = 2.0
GATEWAY_PORT = 8815


class Doubt(Exception):
    """Nothing that keeps a job from running, but somebody should know."""


@dataclass(frozen=True)
class Found:
    """`state`: ok, doubt or wrong."""

    check: str
    state: str
    words: str


Check = tuple[str, Callable[[], str]]


def run(check: Check) -> Found:
    """Its sentence, whatever happens."""
    name, look = check
    try:
        return Found(name, "ok", look())
    except Doubt as doubt:
        return Found(name, "doubt", str(doubt))
    except FlowstateError as error:
        facts = [f"{key}={value!r}" for key, value in error.facts.items() if key != "retry_after"]
        return Found(name, "wrong", " ".join([error.message, *facts]))
    except Exception as error:  # of code of the user's, or of what she has installed
        return Found(name, "wrong", f"{type(error).__name__}: {error}")


# this machine


def packages() -> str:
    """Versions against the lower bounds: those that the tests ran with."""
    from packaging.requirements import Requirement

    old, missing, count = [], [], 0
    for text in metadata.requires("flowstate") or ():
        each = Requirement(text)
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            missing.append(each.name)
            continue
        count += 1
        if not each.specifier.contains(version, prereleases=True):
            old.append(f"{each.name} is {version}, and must be {each.specifier}")
    if metadata.version("dask") != metadata.version("distributed"):
        old.append(
            f"dask is {metadata.version('dask')} and distributed {metadata.version('distributed')}: they belong together"
        )
    if missing or old:
        wrong = [*(f"{name} is not installed" for name in missing), *old]
        raise InvalidFlow(f"{'; '.join(wrong)}; run pip install --upgrade flowstate")
    return f"Python {sys.version.split()[0]}, and {count} packages at their lower bounds or above"


def memory() -> str:
    """What is left of the machine's, or of the group's that this process is in."""
    left = []
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        left.append(int(lines["MemAvailable"].split()[0]) << 10)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text().strip()) != "max":
        left.append(int(most) - int((group / "memory.current").read_text()))
    if not left:
        raise Doubt("this system does not tell how much memory is left")
    if min(left) < LEAST_MEMORY:
        raise Doubt(
            f"{min(left) >> 20} MiB are left; state lives in memory: end something, or give the job another machine"
        )
    return f"{min(left) / (1 << 30):.1f} GiB are left"


def files() -> str:
    """Open files: connections and segments."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        raise Doubt(f"{soft} files may be open; run ulimit -n {min(hard, 65536) if hard > 0 else 65536} before the job")
    return "any number may be open" if soft == resource.RLIM_INFINITY else f"{soft:,} may be open"


def kernels() -> str:
    """Where compiled kernels are kept."""
    from flowstate.plan.kernel import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = "compiled kernels cannot be kept, so each start takes 20 s more; set XDG_CACHE_HOME to a folder that is writable"
        raise Doubt(f"{message} (folder={str(folder)!r}, {error.strerror})") from None
    return f"kept in {folder}"


def ports() -> str:
    """Whether this machine can be listened on, and by a gateway at its own port."""
    for port in (0, GATEWAY_PORT):
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(("127.0.0.1", port))
            except OSError as error:
                if port and error.errno == errno.EADDRINUSE:
                    raise Doubt(f"port {port} is taken; give flowstate gateway another one with --port") from None
                raise Unavailable(
                    f"nobody can listen on 127.0.0.1: {error.strerror}; mend the network of this machine"
                ) from error
    return f"free ones are there, and {GATEWAY_PORT} for a gateway"


def clock() -> str:
    """Whether it can be right: snapshots, freshness and event times go by it."""
    now = SystemClock().wall()
    built = Path(__file__).stat().st_mtime
    if now < built - 86_400:
        raise InvalidFlow(
            "the clock of this machine is before the day on which flowstate was installed; set it", now=now
        )
    return f"{_moment(now)}"


def _moment(seconds: float) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# a flow, its snapshots, its log


def snapshots(url: str, flow: Any) -> str:
    """The probe of `start`, and whether `flow`, if there is one, may go on there."""
    from flowstate.snapshot.job_record import JobChain
    from flowstate.store import Store

    store, clock = Store.open(url), SystemClock()
    begun = clock.monotonic()
    store.probe()
    took = clock.monotonic() - begun
    said = f"objects are created once only, in {took * 1000:.0f} ms for all that is tried"
    if "://" not in url and (free := shutil.disk_usage(url).free) < LEAST_DISK:
        raise Doubt(f"{said}; but {free >> 20} MiB are left on the disk: make room")
    job = JobChain(store).load()
    if job is None:
        return f"{said}; no job has been here yet"
    said += f"; job {job.name!r} is, in run {job.run} with {job.partitions} partitions"
    if flow is not None and flow.fingerprint != job.fingerprint:
        different = flow.differences(job.plan["flow"]) or ["in a part that its description does not show"]
        message = "this flow is not the one that wrote these snapshots; undo the change, or give it a folder of its own"
        raise InvalidFlow(f"{message}: {'; '.join(different[:5])}")
    return said


def source(scan: Any) -> str:
    """Whether its splits are found: brokers, topics, files, permissions."""
    from flowstate.source import make_source

    found = make_source(scan).splits()
    if not found:
        raise Doubt(f"{scan.kind} {scan.name!r} has no split yet; it is read when there is one")
    return f"{scan.kind} {scan.name!r} has {len(found)} split{'s' * (len(found) != 1)}"


def sink(spec: Any, table: Any) -> str:
    """Whether it takes rows of `table`."""
    from flowstate.plan.nodes import shown_url
    from flowstate.sink import make_sink

    make_sink(spec).check(spec.schema(table))
    return f"{spec.kind} to {shown_url(spec.url)} takes its rows"


def broker(bootstrap: str, topics: Sequence[str]) -> str:
    """Whether it answers, and has the topics."""
    from flowstate.source.kafka_client import Topic, open_consumer

    if not topics:
        from confluent_kafka import KafkaException

        from flowstate.source.kafka_client import Outages

        outages = Outages("doctor")
        consumer = open_consumer("doctor", bootstrap, {"log_level": 0}, outages)
        try:
            count = len(consumer.list_topics(timeout=5.0).topics)
        except KafkaException as error:
            message = "no broker answers here; start it, or correct the address and what is between"
            raise Unavailable(message, bootstrap=bootstrap, reason=error.args[0].str()) from error
        finally:
            consumer.close()
        return f"{bootstrap} answers, and has {count} topics"
    found = []
    for name in topics:
        topic = Topic(name, name, bootstrap, {})
        try:
            count = len(topic.partitions())
        finally:
            topic.close()
        found.append(f"{name} with {count} partition{'s' * (count != 1)}")
    return f"{bootstrap} answers, and has {', '.join(found)}"


# a job that runs


def job(place: Any) -> str:
    """Whether it can be asked, and what troubles it."""
    from flowstate.command.observer import Observer
    from flowstate.view.answer import Answer

    clock = SystemClock()
    with place.opened() as (reader, saved):
        sight = Observer(place, reader, saved).look()
        view = next(iter(reader.views()), None)
        apart = None
        if view is not None and sight.state != "down":
            before = clock.wall()
            answer = Answer.of(reader.scan(view, reader.info(view).schema.names[:1], limit=0).schema)
            live = [] if answer is None else [each.as_of for each in answer.parts if each.origin == "live"]
            if live:
                apart = max(0.0, before - CLOCKS - max(live), min(live) - clock.wall() - CLOCKS)
    if sight.troubles:
        raise Unavailable("; ".join(sight.troubles))
    if apart:
        message = f"the clocks of the workers and of this machine are {apart + CLOCKS:.0f} s apart; let all of them be set by NTP"
        raise InvalidFlow(message)
    return f"{sight.job!r} is {sight.state}, {len(sight.partitions)} partitions answer, and none is late"
