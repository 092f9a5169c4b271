"""Fixtures that more than one room uses."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kafka_broker import KafkaBroker, jars

from flowstate.testing.tormentor import SmallDisk

if TYPE_CHECKING:
    from distributed import Client


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
