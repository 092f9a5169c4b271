"""The broker of the tests: `flowstate.testing.servers.kafka`, skipped where it cannot run."""

from __future__ import annotations

from required import required

from flowstate.testing.servers import kafka
from flowstate.testing.servers.kafka import KafkaBroker
from flowstate.testing.tormentor import free_port

__all__ = ["KafkaBroker", "free_port", "jars"]


def jars() -> None:
    """Have the broker's class path. Skips the test if it cannot be had."""
    required(kafka.missing, kafka.jars)
