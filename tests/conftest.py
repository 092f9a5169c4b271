"""Fixtures that more than one room uses."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser
import go_reader
import jdbc_client
import pytest
from hypothesis import HealthCheck, settings
from kafka_broker import KafkaBroker, jars
from xdist.scheduler import LoadScopeScheduling

from flowstate.errors import Unavailable
from flowstate.testing.servers import kafka as kafka_server
from flowstate.testing.servers import s3 as s3_server
from flowstate.testing.tormentor import SmallDisk

if TYPE_CHECKING:
    from attack import Target
    from distributed import Client
    from guarded import Guarded
    from pyarrow.flight import FlightClient

    from flowstate_http import HttpService

#: What the tests with a mark need, and how it is had.
FETCHED: dict[str, Callable[[], object]] = {
    "kafka": kafka_server.jars,
    "s3": s3_server.program,
    "go": go_reader.build,
    "jdbc": jdbc_client.fetch,
    "browser": browser.fetch_on_ci,
}

# How long an example takes says more about the machine than about us. (Where CI is set, Hypothesis's own profile says the same.)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if not os.environ.get("CI"):
    settings.load_profile("any machine")

# A shell starts what is to run in the background deaf to Ctrl-C, and so would be every process that a test presses it for.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Tests of real processes: they wait for most of their time, and measure some of it, so they run one after the other in one process of the
#: two that `make test` starts, while the other computes.
PROCESSES = (
    "test_client_",
    "test_dashboard",
    "test_demo",
    "test_drill",
    "test_gateway",
    "test_job_",
    "test_tormentor",
    "test_view_consistency",
)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests stay together, and so do all those of real processes."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "processes" if Path(file).name.startswith(PROCESSES) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


_stepped_back = False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Of two processes, the one that computes gives way to the one whose tests wait for others, and measure."""
    global _stepped_back
    if "PYTEST_XDIST_WORKER" in os.environ and not _stepped_back and not item.path.name.startswith(PROCESSES):
        _stepped_back = True
        os.nice(10)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the chosen tests need from elsewhere is fetched and built before the first of them: it takes minutes, once per machine, and is
    no test's own time. What cannot be had is told by the fixtures."""
    if session.config.option.collectonly:
        return
    wanted = [fetch for mark, fetch in FETCHED.items() if any(each.get_closest_marker(mark) for each in session.items)]
    threads = [threading.Thread(target=_fetch, args=(fetch,), daemon=True) for fetch in wanted]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _fetch(fetch: Callable[[], object]) -> None:
    with contextlib.suppress(Unavailable):
        fetch()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A real broker for the session. A test that kills it starts it again itself."""
    jars()
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"))
    atexit.register(broker.kill)
    try:
        broker.format()
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of two worker processes, which the tests of a file share."""
    from local_cluster import two_workers  # here, since most tests need no Dask, which takes long to import

    with two_workers() as client:
        yield client


@pytest.fixture(scope="module", name="browser")
def one_browser() -> Iterator[browser.Browser]:
    """Which the tests of a file share."""
    with browser.opened() as found:
        yield found


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A service that lets some in, which the tests of a file share."""
    from guarded import Guarded

    guarded = Guarded()
    yield guarded
    guarded.close()


@pytest.fixture(scope="module")
def flight_client(guarded: Guarded) -> Iterator[FlightClient]:
    """Of the guarded service; it shows nothing by itself."""
    from pyarrow import flight

    with flight.connect(guarded.service.location) as client:
        yield client


@pytest.fixture(scope="module")
def attacked() -> Iterator[Target]:
    """What the tests of a file attack; nothing is left of it."""
    from attack import target

    with target() as found:
        yield found


@pytest.fixture(scope="module")
def web(attacked: Target) -> Iterator[HttpService]:
    """The same by HTTP."""
    from attack import ACCESS

    from flowstate.view.access import Access
    from flowstate_http import HttpService

    with HttpService(attacked.reader, attacked.gateway.sql, Access(ACCESS)) as found:
        yield found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Mounts a disk of so many bytes, for one test."""
    if reason := SmallDisk.missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:

        def mount(size: int) -> SmallDisk:
            disk = SmallDisk(tmp_path / "disk", size)
            stack.enter_context(disk)
            return disk

        yield mount
