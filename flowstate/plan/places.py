"""Where output goes: no two sinks of a job write to one place, and none where the job reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowstate.errors import InvalidFlow
from flowstate.plan.nodes import shown_url
from flowstate.plan.spec import ScanSpec, SinkSpec

Place = tuple[str, ...]


def check_places(sinks: Sequence[SinkSpec], sources: Sequence[ScanSpec]) -> None:
    """`InvalidFlow` if two sinks have one place, or if the job would read what it writes and so never come to an end."""
    read = {_topic(each.options) for each in sources if each.kind == "kafka"}
    seen: set[Place] = set()
    for each in sinks:
        place = place_of(each)
        if place in seen:
            raise InvalidFlow("two sinks write to the same place; give each its own", url=shown_url(each.url))
        if place in read:
            raise InvalidFlow(
                "the job would read what it writes; give the sink a topic of its own", url=shown_url(each.url)
            )
        seen.add(place)


def place_of(sink: SinkSpec) -> Place:
    """Equal for sinks that would write into each other's output."""
    if sink.kind == "kafka":
        return _topic(sink.options)
    if sink.kind == "http":
        return ("http", sink.url)
    # Files: also two formats do not share a folder, which would be one table to whoever reads it.
    return ("folder", sink.url.removeprefix("file://").removeprefix("./").rstrip("/"))


def _topic(options: Mapping[str, Any]) -> Place:
    brokers = {each.strip() for each in str(options["bootstrap"]).split(",")}
    return ("topic", str(options["topic"]), *sorted(brokers))
