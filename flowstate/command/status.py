"""``flowstate status``: what is wrong with a job, why, and then how it is, by its system tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress

import pyarrow as pa

from flowstate.clock import SystemClock
from flowstate.command.ask import say
from flowstate.command.observer import Observer
from flowstate.command.place import Place
from flowstate.command.rows import cells, is_number, json_rows, table_text, write, write_rows
from flowstate.command.tables import filled, system_tables, table
from flowstate.command.top_screen import recent
from flowstate.errors import FlowstateError, InvalidFlow
from flowstate.view import troubles
from flowstate.view.answer import Answer
from flowstate.view.freshness import Freshness
from flowstate_sql.system import SystemReader

#: Seconds within which a partition that is not late comes to where another one was.
LATE = 1.0
#: Seconds for which the reason is looked for why a partition does not answer.
WHY = 1.0

_TABLES = ("partitions", "positions", "snapshots", "sinks")


def status(place: Place, kind: str) -> None:
    """`kind`: text or json. Raises Unavailable if nothing is known of the job, InvalidFlow."""
    with place.opened() as (reader, saved), system_tables(reader, saved) as system:
        sight = Observer(place, reader, saved).look()
        answer = None
        with suppress(FlowstateError):
            view = next(iter(reader.views()))
            answer = Answer.of(reader.scan(view, reader.info(view).schema.names[:1], limit=0).schema)
        tables = {name: table(system, name) for name in _TABLES}
        if answer is not None:
            tables = filled(tables, answer)
        wrong = list(sight.troubles)
        if sight.run is None:  # nobody knows more than the partitions themselves
            wrong = [each for each in wrong if each.startswith(troubles.UNLED)]
            sinks = [each for _, each in troubles.sinks(tables["sinks"].to_pylist())]
            wrong += [*_away(place, tables["partitions"]), *_late(system, tables), *sinks]
        directory = reader.directory()
    happened = recent(sight, SystemClock().wall())
    if kind == "json":
        write(_json(directory.job, wrong, happened, tables) + b"\n")
    else:
        _text(directory.job, list(directory.views), wrong, happened, tables, saved is not None)


def snapshots(place: Place, kind: str) -> None:
    """Those that are saved of all partitions at one position. `kind`: text or json. Raises Unavailable, InvalidFlow."""
    if place.address is not None:
        message = "the snapshots of a job are listed by the folder or URL that they are in, not by an address"
        raise InvalidFlow(message, got=place.where)
    with place.opened() as (reader, saved), system_tables(reader, saved) as system:
        found = table(system, "snapshots")
    if not found.num_rows:
        say("there is no snapshot of all partitions at one position yet")
    if kind == "json":
        write_rows(kind, found.schema, found.to_batches())
    else:
        _show(_aged(found.select(["snapshot", "at", "partitions"])))


def views(place: Place) -> None:
    """The system table of the views, as JSON. Raises Unavailable, InvalidFlow."""
    with place.opened() as (reader, saved), system_tables(reader, saved) as system:
        found = table(system, "views")
    write_rows("json", found.schema, found.to_batches())


def _away(place: Place, partitions: pa.Table) -> Iterator[str]:
    """A sentence for each partition that is not live."""
    rows = [each for each in partitions.to_pylist() if each["state"] != "live"]
    if rows and len(rows) == partitions.num_rows:
        yield f"{troubles.DOWN}; {troubles.START}"
    now = SystemClock().wall()
    for row in rows:
        saved = None if row["as_of"] is None else now - row["as_of"].timestamp()
        yield troubles.away(row["partition"], _why(place, row["partition"]), saved)


def _why(place: Place, partition: int) -> str:
    """What whoever asks the partition for a live answer is told."""
    try:
        with place.opened(WHY) as (reader, _):
            view = next(iter(reader.views()))
            names = reader.info(view).schema.names[:1]
            reader.scan(view, names, partitions=[partition], limit=0, fresh=Freshness(max_age=0.0))
        return "it is there again just now"
    except FlowstateError as error:
        cause = error.__cause__ if isinstance(error.__cause__, FlowstateError) else error
        reason = str(cause.facts.get("reason", ""))
        reason = reason.partition(" gRPC client debug")[0].rpartition("last error: ")[2].rstrip(".")
        return cause.message if not reason else f"{cause.message} ({reason})"


def _late(system: SystemReader, tables: Mapping[str, pa.Table]) -> Iterator[str]:
    """A sentence for each split in which a live partition does not come in time to where another one was."""
    live = {row["partition"] for row in tables["partitions"].to_pylist() if row["state"] == "live"}

    def offsets(positions: pa.Table) -> dict[str, dict[int, int]]:
        found: dict[str, dict[int, int]] = {}
        for row in positions.to_pylist():
            if row["partition"] in live:
                found.setdefault(row["split"], {})[row["partition"]] = row["offset"]
        return found

    before = offsets(tables["positions"])
    farthest = {split: max(each.values()) for split, each in before.items()}
    if all(offset == farthest[split] for split, each in before.items() for offset in each.values()):
        return
    threading.Event().wait(LATE)
    for split, each in offsets(table(system, "positions")).items():
        for number, offset in sorted(each.items()):
            missing = farthest.get(split, offset) - offset
            if missing > 0:
                yield troubles.late(number, split, missing, LATE)


def _json(job: str, wrong: list[str], happened: list[str], tables: Mapping[str, pa.Table]) -> bytes:
    """One object: ``{"job", "troubles": [sentences], "happened": [sentences], "partitions": [rows], "positions", ...}``, see `_TABLES`."""
    head = json.dumps(
        {"job": job, "troubles": wrong, "happened": happened}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    parts = [f'"{name}":['.encode() + b",".join(json_rows(each)) + b"]" for name, each in tables.items()]
    return head[:-1] + b"," + b",".join(parts) + b"}"


def _text(
    job: str, views: list[str], wrong: list[str], happened: list[str], tables: Mapping[str, pa.Table], stored: bool
) -> None:
    lines = [f"job {job!r}, views {', '.join(views)}"]
    lines += [f"! {each}" for each in wrong] or ["every partition is live, and none is late"]
    lines += happened
    write("".join(line + "\n" for line in lines).encode())
    for name, each in tables.items():
        if name == "snapshots":
            _snapshots_text(each.slice(max(0, each.num_rows - 1)), each.num_rows, stored)
        elif each.num_rows:
            write(f"\n{name}\n".encode())
            _show(_aged(each.select([column for column in each.schema.names if each[column].null_count < len(each)])))


def _snapshots_text(newest: pa.Table, count: int, stored: bool) -> None:
    if not stored:
        return write(b"\nsnapshots: unknown here; ask by their folder or URL\n")
    if not count:
        return write(b"\nsnapshots: none of all partitions at one position\n")
    write(f"\nsnapshots: {count}, the newest\n".encode())
    _show(_aged(newest.select(["snapshot", "at", "partitions"])))


def _aged(rows: pa.Table) -> pa.Table:
    """With a column of seconds since ``at`` or ``as_of``, where there is one."""
    name = next((each for each in ("at", "as_of") if each in rows.schema.names), None)
    if name is None:
        return rows
    now = SystemClock().wall()
    ages = [None if each is None else f"{max(0.0, now - each.timestamp()):.1f} s" for each in rows[name].to_pylist()]
    place = rows.schema.names.index(name)
    return rows.set_column(place, f"{name} (age)", pa.array(_both(cells(rows[name].combine_chunks()), ages)))


def _both(times: list[str], ages: list[str | None]) -> list[str]:
    return [time if age is None else f"{time} ({age})" for time, age in zip(times, ages, strict=True)]


def _show(rows: pa.Table) -> None:
    """A small table as text."""
    columns = [cells(each.combine_chunks()) if rows.num_rows else [] for each in rows.columns]
    right = [place for place, each in enumerate(rows.schema) if is_number(each.type)]
    table_text(rows.schema.names, list(zip(*columns, strict=True)), right)
