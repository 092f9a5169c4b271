"""The broker of the tests: `flowstate.testing.servers.kafka`, skipped where it cannot run."""

from __future__ import annotations

import os

import pytest

from flowstate.errors import Unavailable
from flowstate.testing.servers import kafka
from flowstate.testing.servers.kafka import KafkaBroker
from flowstate.testing.tormentor import free_port

__all__ = ["KafkaBroker", "free_port", "jars"]


def jars() -> None:
    """Have the broker's class path. Skips the test (fails when CI=true) if it cannot be had."""
    reason = kafka.missing()
    if reason is None:
        try:
            kafka.jars()
            return
        except Unavailable as error:
            pytest.fail(error.message)
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
