"""Fixtures that more than one room uses."""

from __future__ import annotations

import atexit
from collections.abc import Iterator

import pytest
from kafka_broker import KafkaBroker, jars


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
