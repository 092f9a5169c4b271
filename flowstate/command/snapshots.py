"""``flowstate snapshots URL show N``, ``diff N M`` and ``open``: what a job saved, with no job running."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import duckdb

from flowstate.api import arguments
from flowstate.api.job import Snapshot, open_snapshot
from flowstate.command.place import Place
from flowstate.command.rows import cells, is_number, table_text, write
from flowstate.command.top_screen import size, span
from flowstate.errors import InvalidFlow
from flowstate.plan.position import NEVER
from flowstate.snapshot.cut import read_cut
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.saved import SavedSnapshot
from flowstate.state.watermark import Watermarks
from flowstate.store import Store
from flowstate.view.freshness import LATEST
from flowstate_sql.system import moment, watermark_moment

#: Rows that are shown of what differs in a view.
SHOWN = 10


def checked(place: Place, action: str, numbers: Sequence[int]) -> str:
    """The URL of the snapshots. Raises InvalidFlow."""
    if place.address is not None:
        message = "the snapshots of a job are shown by the folder or URL that they are in, not by an address"
        raise InvalidFlow(message, got=place.where)
    takes = {"list": (0,), "show": (1,), "diff": (2,), "open": (0, 1)}[action]
    if len(numbers) not in takes:
        said = {"list": "no number", "show": "the number of one", "diff": "the numbers of two"}.get(
            action, "one number at most"
        )
        raise InvalidFlow(f"snapshots {action} takes {said}; flowstate snapshots URL list shows them", got=len(numbers))
    return arguments.place("snapshots", place.where)


def show(url: str, number: int, kind: str) -> None:
    """One saved snapshot: of each partition when it was saved, how far, its rows and bytes. Raises InvalidFlow, CorruptData."""
    saved = SavedSnapshot.open(url, number)
    parts = [_part(partition, manifest) for partition, manifest in sorted(saved.manifests.items())]
    if kind == "json":
        told = {
            "snapshot": number,
            "job": saved.job.name,
            "run": saved.job.run,
            "generation": saved.generation,
            "partitions": parts,
        }
        write(json.dumps(told, ensure_ascii=False, separators=(",", ":"), default=_text).encode() + b"\n")
        return
    write(f"snapshot {number} of job {saved.job.name!r}, {len(parts)} partitions\n\n".encode())
    lines = [
        [
            str(each["partition"]),
            _text(each["at"]),
            _text(each["watermark"]),
            str(each["epoch"]),
            str(each["objects"]),
            size(each["bytes"]),
            str(each["staged"]),
        ]
        for each in parts
    ]
    table_text(
        ["partition", "saved", "watermark", "epoch", "objects", "bytes", "output staged"], lines, [0, 3, 4, 5, 6]
    )
    write(b"\n")
    rows = [[view, str(each["partition"]), f"{count:,}"] for each in parts for view, count in each["rows"].items()]
    table_text(["view", "partition", "rows"], sorted(rows), [1, 2])
    write(b"\n")
    places = sorted({(split, offset, floors) for each in parts for split, (offset, floors) in each["position"].items()})
    table_text(
        ["split", "offset", "floors"], [[split, f"{offset:,}", str(floors)] for split, offset, floors in places], [1, 2]
    )


def _part(partition: int, manifest: Manifest) -> dict[str, Any]:
    state = manifest.state
    assert state is not None
    marks = Watermarks.load(state.marks, state.extras.get("reached", NEVER))
    return {
        "partition": partition,
        "epoch": manifest.epoch,
        "at": moment(state.as_of),
        "watermark": watermark_moment(marks.watermark()),
        "objects": len(state.segments),
        "bytes": _bytes(state),
        "staged": len(manifest.staged),
        "rows": {
            table: sum(each.rows for each in chunks)
            for table, chunks in state.tables.items()
            if not table.startswith("_")
        },
        "position": {split: list(place) for split, place in sorted(marks.position.items())},
    }


def _bytes(state: SavedState) -> int:
    """Of the streams that are referred to."""
    return sum({(ref.segment, ref.start): ref.length for chunks in state.tables.values() for ref in chunks}.values())


def _text(value: Any) -> str:
    return "" if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def diff(url: str, before: int, after: int, kind: str) -> None:
    """What came between two saved snapshots: how far each split, and of each view the rows that are new, changed and gone. Raises
    InvalidFlow, CorruptData."""
    with open_snapshot(url, before) as old, open_snapshot(url, after) as new:
        splits: list[dict[str, Any]] = [
            {"split": split, "before": old.position.get(split, (0, 0))[0], "after": new.position.get(split, (0, 0))[0]}
            for split in sorted({*old.position, *new.position})
        ]
        views = [_difference(view, old, new) for view in new if view in old]
        store = Store.open(url)
        seconds = read_cut(store, after).as_of - read_cut(store, before).as_of
    if kind == "json":
        told = {
            "before": before,
            "after": after,
            "seconds": round(seconds, 3),
            "splits": splits,
            "views": [
                {name: each[name] for name in ("view", "rows_before", "rows_after", "new", "changed", "gone")}
                for each in views
            ],
        }
        write(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        return
    write(f"from snapshot {before} to {after}: {span(abs(seconds))}{' back' if seconds < 0 else ''}\n\n".encode())
    lines = [
        [each["split"], f"{each['before']:,}", f"{each['after']:,}", f"{each['after'] - each['before']:+,}"]
        for each in splits
    ]
    table_text(["split", "before", "after", "moved"], lines, [1, 2, 3])
    write(b"\n")
    counts = [
        [each["view"], *(f"{each[name]:,}" for name in ("rows_before", "rows_after", "new", "changed", "gone"))]
        for each in views
    ]
    table_text(["view", "rows before", "after", "new", "changed", "gone"], counts, [1, 2, 3, 4, 5])
    for each in views:
        if each["rows"].num_rows:
            write(f"\n{each['view']}, as it is after\n".encode())
            shown = each["rows"]
            columns = [cells(column.combine_chunks()) for column in shown.columns]
            right = [place for place, field in enumerate(shown.schema) if is_number(field.type)]
            table_text(shown.schema.names, list(zip(*columns, strict=True)), right)
            if (rest := each["new"] + each["changed"] - shown.num_rows) > 0:
                write(f"and {rest:,} more\n".encode())


def _difference(view: str, old: Snapshot, new: Snapshot) -> dict[str, Any]:
    """Counts, and the first of the rows that are new or changed."""
    before, after = old.to_table(view), new.to_table(view)
    keys = new._reader.info(view).keys
    found: dict[str, Any] = {"view": view, "rows_before": before.num_rows, "rows_after": after.num_rows}
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("before", before.replace_schema_metadata())
        connection.register("after", after.replace_schema_metadata())
        same = " and ".join(
            f"before.{_quoted(each)} is not distinct from after.{_quoted(each)}" for each in keys or after.schema.names
        )
        other = f"(select 1 from before where {same})"
        connection.execute("create temp table came as select * from (from after except all from before)")
        came = f"from came as after where {{}} exists {other}"

        def count(query: str) -> int:
            return int(connection.execute(f"select count(*) {query}").fetchall()[0][0])

        found["new"] = count(came.format("not")) if keys else count("from came")
        found["changed"] = count(came.format("")) if keys else 0
        gone = f"from before where not exists (select 1 from after where {same})"
        found["gone"] = count(gone) if keys else count("from (from before except all from after)")
        found["rows"] = connection.sql(f"from came order by all limit {SHOWN}").to_arrow_table()
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def open_prompt(url: str, number: int | None) -> int:
    """The prompt of ``flowstate sql`` over what was saved. Raises InvalidFlow, Unavailable."""
    from flowstate.command.prompt import Prompt
    from flowstate.command.query import limits
    from flowstate_sql.served import ServedSql

    with open_snapshot(url, number) as snapshot:
        served = ServedSql(snapshot._reader, limits(), store=snapshot._store)
        try:
            note = "" if number is None else f" at snapshot {number}"
            return Prompt(snapshot._reader, served, LATEST).serve(note or " as it was saved last")
        finally:
            served.close()
