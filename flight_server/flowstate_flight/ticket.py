"""What may be asked of a partition, as plain JSON: strict, bounded, and nothing in it is ever unpickled.

A ticket is ``{"v": 1, "job", "view", "partition", "columns"?, "filter"?, "keys"?, "limit"?, "fresh"?, "wait"?, "epoch"?, "partial"?,
"changes"?, "resume"?}``. `filter` is base64 of a Substrait extended expression, whose base schema names the columns it reads; `keys` is
base64 of an Arrow IPC stream with one batch of keys; `fresh` is the JSON of a `flowstate.view.freshness.Freshness`, and `wait` the seconds
for which its `at_least` may be waited for; `partial` is the text of a question (module `partial`) that is answered in place of the rows.
With ``"changes": true`` the stream stays open and tells what changes (`flowstate.view.changes`, module `subscribing`); `resume` is what a
position said that was told before: an object from a partition, a text from a gateway. A command (of a descriptor or an exchange) is a
ticket without its partition.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.view.freshness import LATEST, Freshness, checked, wait_of

MAX_TICKET_BYTES = 4 << 20
MAX_COLUMNS = 10_000
MAX_NAME = 1_000
MAX_KEYS = 1_000_000
_FIELDS = frozenset(
    {"v", "job", "view", "partition", "columns", "filter", "keys", "limit", "fresh", "wait", "epoch", "partial"}
    | {"changes", "resume"}
)
_DECODER = json.JSONDecoder()
_FRESH = frozenset({"max_age", "at_least", "consistent", "snapshot", "cut", "once"})


@dataclass(frozen=True)
class Ticket:
    """A read of one partition of one view; `partition` is None in a command. `filter` and `keys` are decoded bytes."""

    job: str
    view: str
    partition: int | None = None
    columns: tuple[str, ...] | None = None
    filter: bytes | None = None
    keys: bytes | None = None
    limit: int | None = None
    fresh: Freshness = LATEST
    wait: float | None = None
    epoch: int | None = None
    partial: str | None = None
    changes: bool = False
    resume: Any = None

    def to_bytes(self) -> bytes:
        data: dict[str, Any] = {"v": 1, "job": self.job, "view": self.view}
        for name in ("partition", "limit", "epoch", "partial"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        if self.columns is not None:
            data["columns"] = list(self.columns)
        for name in ("filter", "keys"):
            if getattr(self, name) is not None:
                data[name] = b64encode(getattr(self, name)).decode()
        if self.fresh != LATEST:
            data["fresh"] = self.fresh.to_data()
        if self.wait is not None:
            data["wait"] = self.wait
        if self.changes:
            data["changes"] = True
        if self.resume is not None:
            data["resume"] = self.resume
        return json.dumps(data).encode()

    @staticmethod
    def from_bytes(raw: bytes, *, partition: bool = True) -> Ticket:
        """Read a ticket, or a command if not `partition`. Raises InvalidFlow for anything that is not exactly one."""
        data = read_json(raw, "ticket" if partition else "command")
        unknown = sorted(set(data) - _FIELDS)
        if unknown:
            raise InvalidFlow("the ticket has a field that version 1 does not know; leave it out", fields=unknown[:5])
        if data.get("v") != 1 or isinstance(data.get("v"), bool):
            raise InvalidFlow("the ticket's version is not known here; use v=1")
        if not partition and "partition" in data:
            raise InvalidFlow("a command is for all partitions; leave 'partition' out")
        if "partial" in data and not (partition and isinstance(data["partial"], str)):
            raise InvalidFlow("'partial' of a ticket is text, and asks one partition of a worker")
        columns = data.get("columns")
        if columns is not None:
            if not isinstance(columns, list) or not 0 < len(columns) <= MAX_COLUMNS:
                raise InvalidFlow("'columns' of a ticket is a list of names, at least one")
            columns = tuple(name_of(each, "columns") for each in columns)
            if len(set(columns)) != len(columns):
                raise InvalidFlow("'columns' of a ticket names a column twice")
        return Ticket(
            name_of(data.get("job"), "job"),
            name_of(data.get("view"), "view"),
            _number(data, "partition", 2**31, required=partition),
            columns,
            _base64(data, "filter"),
            _base64(data, "keys"),
            _number(data, "limit", 2**63),
            freshness_of(data.get("fresh")),
            wait_of(data.get("wait")),
            _number(data, "epoch", 2**63),
            data.get("partial"),
            *_changes(data),
        )


def read_json(raw: bytes, what: str) -> dict[str, Any]:
    """One JSON object from a client. Raises InvalidFlow."""
    if len(raw) > MAX_TICKET_BYTES:
        raise InvalidFlow(
            f"the {what} is too long; ask for fewer keys at a time", bytes=len(raw), limit=MAX_TICKET_BYTES
        )
    try:
        data = _loads(raw)
    except (ValueError, RecursionError):
        raise InvalidFlow(f"the {what} is not JSON; ask get_flight_info for one") from None
    if not isinstance(data, dict):
        raise InvalidFlow(f"the {what} is not a JSON object; ask get_flight_info for one")
    return data


def _loads(raw: bytes) -> Any:
    """What `json.loads` gives, in half the time for what has no blanks around it: every lookup pays for it."""
    try:
        text = raw.decode()
        data, end = _DECODER.raw_decode(text)
        if end == len(text):
            return data
    except ValueError:
        pass
    return json.loads(raw)


def freshness_of(data: object) -> Freshness:
    """The Freshness that a client asked for in JSON. Raises InvalidFlow."""
    if data is None:
        return LATEST
    if not isinstance(data, Mapping) or set(data) - _FRESH:
        raise InvalidFlow("'fresh' is a JSON object with max_age, at_least, consistent, snapshot, or cut and once")
    return checked(**data)


def write_keys(keys: pa.RecordBatch) -> bytes:
    """Keys as the bytes of `Ticket.keys`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, keys.schema) as writer:
        writer.write_batch(keys)
    return sink.getvalue().to_pybytes()


def read_keys(raw: bytes) -> pa.RecordBatch:
    """The batch of `Ticket.keys`, checked throughout, since it comes from outside. Raises InvalidFlow."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(raw)) as reader:
            batch = reader.read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, StopIteration, OSError, EOFError):
        raise InvalidFlow("'keys' is not an Arrow IPC stream with one batch") from None
    if batch.num_rows > MAX_KEYS:
        raise InvalidFlow("too many keys in one request; ask in parts", keys=batch.num_rows, limit=MAX_KEYS)
    return batch


def name_of(value: object, field: str) -> str:
    """A name of a job, view or column as it came from a client. Raises InvalidFlow."""
    if not isinstance(value, str) or not value or len(value) > MAX_NAME:
        raise InvalidFlow(f"'{field}' of a ticket is a name: a text of 1 to {MAX_NAME} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidFlow(f"'{field}' of a ticket is not valid text") from None
    return value


def _changes(data: dict[str, Any]) -> tuple[bool, Any]:
    changes, resume = data.get("changes", False), data.get("resume")
    if not isinstance(changes, bool) or not (resume is None or (changes and isinstance(resume, dict | str))):
        raise InvalidFlow("'changes' of a ticket is true or false, and 'resume' what a position of them said")
    return changes, resume


def _number(data: dict[str, Any], field: str, below: int, required: bool = False) -> int | None:
    value = data.get(field)
    if value is None and not required:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise InvalidFlow(f"'{field}' of a ticket is a whole number from 0 to {below - 1}")
    return value


def _base64(data: dict[str, Any], field: str) -> bytes | None:
    value = data.get(field)
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        return b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidFlow(f"'{field}' of a ticket is base64 text") from None
