"""Flows as a user writes them: every method adds a node to the plan and does nothing else.

`Stream` is rows, `GroupBy` rows under keys, `View` a keyed table with a name, `FinalRows`, `ChangedRows` and `LateRows` what a view gives
out, `DeadLetters` what nobody could read, `Output` the end of a flow (`output`). Each holds its plan node as `node`; `start` takes views
and outputs.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from flowstate.api.output import Flow, Output, Rows, place
from flowstate.errors import InvalidFlow
from flowstate.plan.dialect import Dialect
from flowstate.plan.evaluate import Explode, Filter, MapBatches, Select
from flowstate.plan.expr import to_expr
from flowstate.plan.nodes import Changes, Final, Grouped, Late, Node, Scan, Transform, grouped, named_expressions
from flowstate.plan.nodes import DeadLetters as DeadLettersNode
from flowstate.plan.nodes import View as ViewNode
from flowstate.plan.schema import check_columns
from flowstate.plan.spec import ScanSpec
from flowstate.plan.window import Duration, duration

__all__ = [
    "Aggregated",
    "ChangedRows",
    "DeadLetters",
    "FinalRows",
    "Flow",
    "GroupBy",
    "LateRows",
    "Output",
    "Rows",
    "Stream",
    "View",
    "dead_letters",
    "from_arrow",
    "scan_files",
    "scan_kafka",
]

Start = Literal["earliest", "latest"] | Mapping[int, int] | datetime.datetime
FileFormat = Literal["json", "csv", "parquet", "arrow"]

_COMPRESSED = re.compile(r"\.(gz|gzip|bz2|zst|zstd|xz|lz4|snappy|br|deflate)$", re.IGNORECASE)
IDENTITIES = ("content", "path")
_FORMATS: dict[str, FileFormat] = {
    "jsonl": "json", "ndjson": "json", "json": "json", "csv": "csv", "parquet": "parquet", "pq": "parquet",
    "arrow": "arrow", "arrows": "arrow", "ipc": "arrow", "feather": "arrow",
}  # fmt: skip


class Stream(Rows):
    """Rows. Those that go to a sink leave in the order of their split, each exactly once."""

    def __init__(self, node: Scan | Transform) -> None:
        self.node: Scan | Transform = node

    def select(self, *columns: Any, **named: Any) -> Stream:
        """Only these columns: names, or expressions."""
        return Stream(Transform(self.node, Select(named_expressions(columns, named, "select"))))

    def with_columns(self, *columns: Any, **named: Any) -> Stream:
        """These columns added, or put in place of those of the same name. All see the row as it was before."""
        return Stream(Transform(self.node, Select(named_expressions(columns, named, "with_columns"), keep=True)))

    def filter(self, *predicates: Any) -> Stream:
        """Only rows for which every condition is true; each is asked only about rows that passed the one before."""
        if not predicates:
            raise InvalidFlow("filter needs a condition, such as col('amount') > 0")
        node = self.node
        for each in predicates:
            node = Transform(node, Filter(to_expr(each)))
        return Stream(node)

    def explode(self, *columns: str) -> Stream:
        """A row for each element of a column of lists; several columns are taken apart side by side."""
        if not columns or not all(isinstance(each, str) for each in columns):
            raise InvalidFlow("explode takes names of columns of lists")
        return Stream(Transform(self.node, Explode(columns)))

    def map_batches(
        self, function: Callable[[pa.RecordBatch], pa.RecordBatch], schema: pa.Schema, *, per_row: bool = False
    ) -> Stream:
        """Your own function over RecordBatches, which returns rows of `schema`.

        Its result for a row may not depend on the other rows of the batch: batches are cut anywhere. A function that returns as many
        rows as it got has changed those rows, in order; one that both drops and multiplies rows needs `per_row=True`.
        """
        if not callable(function):
            raise InvalidFlow("map_batches takes a function", got=repr(function))
        return Stream(Transform(self.node, MapBatches(function, check_columns(schema, "map_batches"), per_row)))

    def group_by(self, *keys: Any, **named: Any) -> GroupBy:
        """Keys: names, expressions, and at most one ``window(...)``, which needs a name."""
        return GroupBy(self.node, keys, named)


class GroupBy:
    """Keys that wait for their aggregates."""

    def __init__(self, node: Node, keys: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._node, self._keys, self._named = node, keys, dict(named)

    def agg(self, *aggregates: Any, **named: Any) -> Aggregated:
        """One column for each aggregate: ``agg(total=col("amount").sum(), events=len())``."""
        return Aggregated(grouped(self._node, self._keys, self._named, named, aggregates))


class Aggregated(Flow):
    """Aggregates that wait for a name."""

    def __init__(self, node: Grouped) -> None:
        self.node: Grouped = node

    def view(self, name: str) -> View:
        """A keyed table called `name`, that can be asked while the job runs."""
        return View(ViewNode(self.node, name))


class View(Flow):
    """A keyed table with a name."""

    def __init__(self, node: ViewNode) -> None:
        self.node: ViewNode = node

    @property
    def name(self) -> str:
        return self.node.name

    def final(self) -> FinalRows:
        """Rows of closed windows: each once, never changed again."""
        return FinalRows(Final(self.node))

    def changes(self) -> ChangedRows:
        """Each row as it is whenever it has changed, at every save of the job, with two more columns: ``_epoch``, which grows when a
        partition starts anew, and ``_revision``, the number of rows applied to the key. The greatest ``(_epoch, _revision)`` of a key is
        what holds; revisions between two saves are passed over."""
        return ChangedRows(Changes(self.node))

    def late(self) -> LateRows:
        """Rows that came after their window had closed, so that no view has them: ``split`` and ``offset``, then their columns. Also
        without a sink they are counted, and the newest can be asked: ``job["<view>_late"]``."""
        return LateRows(Late(self.node))


class FinalRows(Rows):
    """Rows that do not change any more."""

    def __init__(self, node: Final) -> None:
        self.node: Final = node


class ChangedRows(Rows):
    """Revisions of rows."""

    def __init__(self, node: Changes) -> None:
        self.node: Changes = node


class LateRows(Rows):
    """Rows that came too late for a view."""

    def __init__(self, node: Late) -> None:
        self.node: Late = node


class DeadLetters(Rows):
    """What could not be read or computed."""

    def __init__(self, node: DeadLettersNode) -> None:
        self.node: DeadLettersNode = node


def dead_letters() -> DeadLetters:
    """What could not be read or computed, of all sources of the job that this is an output of: source, split, offset, view, reason, the
    record as it stood in the log, and the log's own time of it. Also without a sink it is counted, and its newest can be asked:
    ``job["dead_letters"]``."""
    return DeadLetters(DeadLettersNode())


def scan_kafka(
    topic: str,
    *,
    bootstrap: str,
    schema: pa.Schema,
    format: Literal["json", "csv", "arrow"] = "json",
    event_time: str | None = None,
    lateness: Duration = "0s",
    max_ahead: Duration | None = "1d",
    start: Start = "earliest",
    lost: Literal["refuse", "skip"] = "refuse",
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Stream:
    """Records of a topic. Each partition is a split. A record of JSON or CSV is one row; one of Arrow is an IPC stream of any
    number of rows, which is read as a whole or is a dead letter as a whole.

    `event_time` names the column that says when it happened; `lateness` is how far rows of a split may be out of order; a row more
    than `max_ahead` past its record's own time is a dead letter. `start` counts only when a job starts for the first time.
    `lost` is what happens when retention has deleted offsets before they were read: the split is refused, with the numbers, until
    somebody decides; or the stretch is skipped, and is one dead letter that says how much is missing.
    `config` has any setting of librdkafka (``{"security.protocol": "SASL_SSL", ...}``). `name` is what the job calls the source.
    """
    if not isinstance(topic, str) or not topic:
        raise InvalidFlow("scan_kafka takes the name of one topic", topic=topic)
    if not isinstance(bootstrap, str) or not bootstrap:
        raise InvalidFlow("scan_kafka needs bootstrap='host:port'", topic=topic)
    _one_of("format", format, ("json", "csv", "arrow"))
    _one_of("lost", lost, ("refuse", "skip"))
    options = {
        "topic": topic, "bootstrap": bootstrap, "format": format, "start": _start(start), "lost": lost,
        "config": dict(config or {}), "name": name or topic,
    }  # fmt: skip
    return _scan("kafka", name or topic, schema, event_time, lateness, max_ahead, options)


def scan_files(
    url: str | os.PathLike[str],
    *,
    schema: pa.Schema | None = None,
    format: FileFormat | None = None,
    event_time: str | None = None,
    lateness: Duration = "0s",
    follow: bool = False,
    compression: str | None = "infer",
    max_line_bytes: int = 1 << 20,
    header: bool = True,
    delimiter: str | None = None,
    decimal_point: str | None = None,
    time_format: str | Sequence[str] | None = None,
    encoding: str | None = None,
    identity: Literal["content", "path"] = "content",
    name: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Stream:
    """Rows of files: JSON Lines, CSV, Parquet or Arrow IPC, under any fsspec URL; ``*`` matches names. Each file is a split.

    `format` is guessed from the name if it is not given. With `follow` files may still grow and new ones appear, and the source
    ends only when the job is drained. `compression` is None, "infer" (from the name) or its name. A longer line than
    `max_line_bytes` is a dead letter. `header` says whether CSV files begin with the names of their columns. Where CSV has other signs
    than commas and points, times that are not ISO 8601 or text that is not UTF-8: ``delimiter=";", decimal_point=",",
    time_format="%d.%m.%Y %H:%M", encoding="cp1252"`` (`time_format` as for strptime, one or several). A file is known by its
    first bytes, so that a renamed one is not read twice, or by its path (`identity`). `name` is what the job calls the source: it is
    part of what a file is known by.
    """
    url = place("scan_files", url)
    chosen = _one_of("format", format, ("json", "csv", "parquet", "arrow")) if format else _format_of(url)
    if schema is None:
        raise InvalidFlow(
            "scan_files needs schema=pa.schema({'name': pa.string(), ...}), also for this format"
            + ("; pyarrow.csv.open_csv(url).schema is a start" if chosen == "csv" else ""),
            format=chosen,
        )
    formats = list(time_format) if isinstance(time_format, (list, tuple)) else time_format
    told = {"delimiter": delimiter, "decimal_point": decimal_point, "time_format": formats, "encoding": encoding}
    told = {what: each for what, each in told.items() if each is not None}
    if told and chosen != "csv":
        raise InvalidFlow(f"{', '.join(told)}: only CSV files are told this; leave it out", format=chosen)
    Dialect.of(told)
    if not isinstance(max_line_bytes, int) or max_line_bytes < 1:
        raise InvalidFlow("max_line_bytes is a whole number of at least 1", max_line_bytes=max_line_bytes)
    options = {
        "url": url, "format": chosen, "follow": bool(follow), "compression": compression, "max_line_bytes": max_line_bytes,
        "storage_options": dict(storage_options or {}), "header": header, "identity": _one_of("identity", identity, IDENTITIES),
        "name": name or _name_of(url), **told,
    }  # fmt: skip
    return _scan("files", name or _name_of(url), schema, event_time, lateness, None, options)


def from_arrow(
    data: pa.Table | pa.RecordBatch | Iterable[pa.RecordBatch],
    *,
    event_time: str | None = None,
    lateness: Duration = "0s",
    splits: int = 1,
    name: str = "arrow",
) -> Stream:
    """Rows that are there already, dealt out to `splits` splits: for notebooks and tests."""
    if isinstance(data, pa.Table):
        schema, batches = data.schema, data.to_batches()
    elif isinstance(data, pa.RecordBatch):
        schema, batches = data.schema, [data]
    else:
        batches = list(data) if isinstance(data, Iterable) else []
        if not batches or not all(isinstance(each, pa.RecordBatch) for each in batches):
            raise InvalidFlow("from_arrow takes a pa.Table, or RecordBatches (one at least, even if it is empty)")
        schema = batches[0].schema
        for each in batches:
            if not each.schema.equals(schema):
                raise InvalidFlow("the batches have different schemas", first=str(schema), other=str(each.schema))
    if not isinstance(splits, int) or not 1 <= splits <= 10_000:
        raise InvalidFlow("splits is at least 1 and at most 10,000", splits=splits)
    return _scan("arrow", name, schema, event_time, lateness, None, {"batches": batches, "splits": splits})


def _scan(
    kind: Literal["kafka", "files", "arrow"],
    name: str,
    schema: pa.Schema,
    event_time: str | None,
    lateness: Duration,
    max_ahead: Duration | None,
    options: Mapping[str, Any],
) -> Stream:
    schema = check_columns(schema, "from_arrow" if kind == "arrow" else f"scan_{kind}")
    ahead = None if max_ahead is None or event_time is None else duration(max_ahead)
    return Stream(Scan(ScanSpec(name, kind, schema, event_time, duration(lateness), ahead, options)))


def _one_of(what: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise InvalidFlow(f"{what} is one of {', '.join(map(repr, known))}", got=value)
    return value


def _start(start: Start) -> Start:
    if isinstance(start, Mapping):
        if not all(isinstance(each, int) and each >= 0 for pair in start.items() for each in pair):
            raise InvalidFlow("start as offsets is a mapping of partition to offset", start=dict(start))
        return dict(start)
    if isinstance(start, datetime.datetime):
        if start.tzinfo is None:
            raise InvalidFlow("start as a time needs a time zone, such as datetime.UTC", start=start.isoformat())
        return start
    return _one_of("start (if no mapping and no datetime)", start, ("earliest", "latest"))


def _format_of(url: str) -> FileFormat:
    suffix = _COMPRESSED.sub("", url.rstrip("/")).rpartition("/")[2].rpartition(".")[2].lower()
    if suffix not in _FORMATS:
        raise InvalidFlow(
            "the name does not tell the format of the files; say format='json' (or csv, parquet, arrow)", url=url
        )
    return _FORMATS[suffix]


def _name_of(url: str) -> str:
    """The last part of the place that names something: ``s3://logs/clicks/*.jsonl`` is ``clicks``."""
    for part in reversed(url.partition("://")[2].split("/") if "://" in url else url.split("/")):
        stem = part.split(".")[0]
        if stem and not re.search(r"[*?\[\]]", stem):
            return stem
    return "files"
