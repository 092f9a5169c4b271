"""Rows out, exactly once (`base` is the contract)."""

from __future__ import annotations

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import SinkSpec
from flowstate.sink.base import Sink, Stage

__all__ = ["Sink", "Stage", "make_sink"]


def make_sink(spec: SinkSpec, number: int = 0) -> Sink:
    """The sink of `spec`, which the job knows by `number`."""
    match spec.kind:
        case "parquet" | "csv" | "json":
            from flowstate.sink.files import FileSink

            return FileSink(spec, sink=number)
        case "kafka":
            from flowstate.sink.kafka import KafkaSink

            return KafkaSink(spec, sink=number)
        case "http":
            from flowstate.sink.http import HttpSink

            return HttpSink(spec, sink=number)
    raise InvalidFlow("there is no such sink", kind=spec.kind)
