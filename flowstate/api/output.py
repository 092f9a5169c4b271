"""The ends of flows: rows to files, to a Kafka topic, to an HTTP service.

What `Rows` can do is the same for all kinds of rows; what it means depends on the kind. Rows of a stream, late rows, dead letters and
`final()` rows are added, each exactly once. `changes()` are revisions: the one with the greatest ``(_epoch, _revision)`` of a key is
what holds, so that whoever takes them overwrites by key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.nodes import Node, Sink
from flowstate.plan.window import Duration, duration

_SIZE = re.compile(r"(\d+)\s*([kMGT]?i?B)")
_UNITS = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


class Flow:
    """What all parts of a flow can do."""

    node: Node

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the rows here."""
        return self.node.schema

    def explain(self) -> str:
        """The flow up to here, a line for each step."""
        return self.node.explain()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}\n{self.explain()}\n>"

    def _repr_html_(self) -> str:
        from flowstate.plan.drawing import svg
        from flowstate.plan.graph import graph

        return svg(graph([self.node]))


class Output(Flow):
    """The end of a flow."""

    def __init__(self, node: Sink) -> None:
        self.node: Sink = node


class Rows(Flow):
    """Rows that can go out. Nothing of them is seen outside before the state that they come from is saved, and then all of it, once, also
    when processes die in between. A place that is away stops nobody: what is for it waits beside the snapshots."""

    def sink_parquet(
        self,
        url: str | os.PathLike[str],
        *,
        partition_by: str | Iterable[str] = (),
        roll_bytes: int | str | None = None,
        roll_after: Duration | None = None,
        **options: Any,
    ) -> Output:
        """Parquet files in the folder `url` (any fsspec URL), below folders ``column=value`` of `partition_by`.

        Each save of the job finishes its files. With `roll_bytes` (of rows, before the format compresses them; a number, or ``"128MB"``)
        or `roll_after` (``"1h"``) rows wait until there are so many, or for so long, whichever comes first; the end of the input finishes
        all. Only whole files are ever seen.
        More options: `compression` (default zstd), `storage_options` (of the file system).
        """
        return self._files("parquet", url, partition_by, roll_bytes, roll_after, options)

    def sink_csv(
        self,
        url: str | os.PathLike[str],
        *,
        partition_by: str | Iterable[str] = (),
        roll_bytes: int | str | None = None,
        roll_after: Duration | None = None,
        **options: Any,
    ) -> Output:
        """CSV files, with a first line of names, in the folder `url`; see `sink_parquet`."""
        return self._files("csv", url, partition_by, roll_bytes, roll_after, options)

    def sink_json(
        self,
        url: str | os.PathLike[str],
        *,
        partition_by: str | Iterable[str] = (),
        roll_bytes: int | str | None = None,
        roll_after: Duration | None = None,
        **options: Any,
    ) -> Output:
        """JSON Lines files, an object per row, in the folder `url`; see `sink_parquet`."""
        return self._files("json", url, partition_by, roll_bytes, roll_after, options)

    def sink_kafka(
        self,
        topic: str,
        *,
        bootstrap: str,
        key: str | Iterable[str] | None = None,
        format: Literal["json", "arrow"] = "json",
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Output:
        """Records of a topic, a record per row, written in transactions: consumers that read committed records see each row once.

        `key` names the columns that make the record's key; without it those of `changes()` and `final()` rows are the keys of the view,
        so that a compacted topic of `changes()` holds the newest revision of each. `config` has any setting of librdkafka. More options:
        `commits_topic`, where it is kept what was written (default ``<topic>-flowstate``).
        """
        if not isinstance(topic, str) or not topic:
            raise InvalidFlow("sink_kafka takes the name of a topic", topic=topic)
        if not isinstance(bootstrap, str) or not bootstrap:
            raise InvalidFlow("sink_kafka needs bootstrap='host:port'", topic=topic)
        given = {"topic": topic, "bootstrap": bootstrap, "format": format, "config": {} if config is None else config}
        if key is not None:
            given["key"] = self._columns("key", key)
        return self._sink("kafka", f"kafka://{bootstrap}/{topic}", {**given, **options})

    def sink_http(
        self,
        url: str,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        batch: int = 1,
        timeout: Duration | float = "10s",
        patience: Duration | float = "10s",
        **options: Any,
    ) -> Output:
        """A request to `url` for every `batch` rows, as JSON; its path and query may name columns: ``https://billing/invoices/{customer}``.

        Each carries an idempotency key that stays the same when it is repeated, so that the service can do it once. A service that is away
        is asked again, with pauses; rows that it refuses (HTTP 4xx) are kept as rejected rows and hold up no others. `timeout` is for an
        answer, `patience` for a request with all its tries (then it counts as away). More options: `connections` (at once, default 4),
        `ca_file` (authorities to trust instead of the system's).
        """
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            message = "sink_http takes a URL that begins with http:// or https://"
            raise InvalidFlow(message)  # without the URL: it may hold a secret
        waits = {"timeout": seconds(timeout), "patience": seconds(patience)}
        given = {"method": method, "headers": {} if headers is None else headers, "batch": batch, **waits}
        return self._sink("http", url, {**given, **options})

    def _files(
        self,
        kind: Literal["parquet", "csv", "json"],
        url: str | os.PathLike[str],
        partition_by: str | Iterable[str],
        roll_bytes: int | str | None,
        roll_after: Duration | None,
        options: Mapping[str, Any],
    ) -> Output:
        given: dict[str, Any] = {"partition_by": self._columns("partition_by", partition_by)}
        if roll_bytes is not None:
            given["roll_bytes"] = size("roll_bytes", roll_bytes)
        if roll_after is not None:
            given["roll_after"] = duration(roll_after)
        return self._sink(kind, place(f"sink_{kind}", url), {**given, **options})

    def _columns(self, option: str, names: str | Iterable[str]) -> tuple[str, ...]:
        columns = (names,) if isinstance(names, str) else tuple(names)
        for name in columns:
            if name not in self.schema.names:
                raise InvalidFlow(f"{option} names no column: {name!r}{did_you_mean(str(name), self.schema.names)}")
        return columns

    def _sink(
        self, kind: Literal["parquet", "csv", "json", "kafka", "http"], url: str, options: Mapping[str, Any]
    ) -> Output:
        return Output(Sink(self.node, kind, url, options))


def place(method: str, url: str | os.PathLike[str]) -> str:
    """A path or URL as text."""
    found = os.fspath(url) if isinstance(url, str | os.PathLike) else ""
    if not isinstance(found, str) or not found:
        raise InvalidFlow(f"{method} takes a path or URL", url=repr(url))
    return found


def size(what: str, value: int | str) -> int:
    """Bytes of a number, or of ``"128MB"`` (decimal) or ``"128MiB"`` (binary)."""
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None and found[2] in _UNITS:
        value = int(found[1]) * _UNITS[found[2]]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidFlow(f"{what} is a number of bytes, or a text such as '128MB' or '64MiB'", got=repr(value))
    return value


def seconds(value: Duration | float) -> float:
    """Seconds of a number of them, or of a duration."""
    return value if isinstance(value, int | float) else duration(value) / 1e6
