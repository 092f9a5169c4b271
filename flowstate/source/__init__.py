"""Rows in, with positions: `base` is the contract, one file per kind of log, `decode` for what is in a record.

A log gives raw records (`records.Records`) or columns; `decode` or `columns` turns them into rows of the scan's schema and dead
letters; `records.complete` adds the hidden columns. Only `kafka` knows Kafka and only `files` knows storage.
"""

from __future__ import annotations

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import ScanSpec
from flowstate.source.base import Rows, Source, SourceReader, SplitInfo

__all__ = ["Rows", "Source", "SourceReader", "SplitInfo", "make_source", "warm_up"]


def make_source(spec: ScanSpec) -> Source:
    """The source that `spec` describes. Refuses what can be seen to be wrong without touching storage or network."""
    if spec.kind == "arrow":
        from flowstate.source.arrow import ArrowSource

        return ArrowSource(spec)
    if spec.kind == "files":
        from flowstate.source.files import FilesSource

        return FilesSource(spec)
    if spec.kind == "kafka":
        from flowstate.source.kafka import KafkaSource

        return KafkaSource(spec)
    raise InvalidFlow("unknown kind of source; there is 'kafka', 'files' and 'arrow'", source=spec.name, kind=spec.kind)


def warm_up() -> None:
    """Compile, or load, every kernel that reads records, so that none of them waits for it."""
    from flowstate.source.arrow_guess import warm_up as arrow
    from flowstate.source.json_guess import warm_up as json
    from flowstate.source.kernels.messages import warm_up as messages

    json()
    messages()
    arrow()
