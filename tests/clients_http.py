"""The same questions as in `clients`, over HTTP: curl, and subscriptions that add up what they are told."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from clients import GROUPED, VIEW, WAIT, AtLeast, Rows, Sums

import flowstate as fs
from flowstate.api.job import Reads
from flowstate.view.answer import Answer


class Curl:
    """JSON by curl. A service of its own, over a worker or a gateway."""

    def __init__(self, address: str) -> None:
        self._service = fs.http(address)

    def _curl(self, path: str, *arguments: str) -> Any:
        command = ["curl", "-sS", "--fail-with-body", "--max-time", str(WAIT), *arguments, self._service.address + path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * WAIT)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout, parse_float=Decimal)

    def _rows(self, path: str, at_least: AtLeast) -> Rows:
        found = self._curl(f"{path}?at_least={urllib.parse.quote(json.dumps(at_least))}")["rows"]
        rows = rows_of_json(found)
        assert len(rows) == len(found), "a row came twice"
        return rows

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        return self._rows(f"/views/{VIEW}/{urllib.parse.quote(customer)}", at_least)

    def all(self, at_least: AtLeast) -> Rows:
        return self._rows(f"/views/{VIEW}", at_least)

    def grouped(self, at_least: AtLeast) -> Sums:
        body = json.dumps({"query": GROUPED.format(view=VIEW), "fresh": {"at_least": at_least}})
        found = self._curl("/sql", "-H", "Content-Type: application/json", "-d", body)["rows"]
        sums = {row["customer"]: (row["total"], row["events"]) for row in found}
        assert len(sums) == len(found), "a row came twice"
        return sums

    def close(self) -> None:
        self._service.close()


def rows_of_json(found: list[dict[str, Any]]) -> Rows:
    return {
        (row["customer"], datetime.fromisoformat(row["month"])): (Decimal(row["total"]), row["events"]) for row in found
    }


class Following:
    """Adds up what a subscription tells, in a thread; answers by the state at a position that has come far enough."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rows: dict[Any, tuple[Any, int | None]] = {}
        self._at: tuple[dict[str, int], Rows] = {}, {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def steps(self) -> Iterator[tuple[str, int | None, Any]]:
        """Kind, partition, and rows, the keys that are gone, or a position (by split the offset)."""
        raise NotImplementedError

    def _run(self) -> None:
        for kind, partition, what in self.steps():
            if kind == "reset":
                self._rows = {
                    key: held for key, held in self._rows.items() if partition is not None and held[1] != partition
                }
            elif kind == "rows":
                self._rows.update({key: (value, partition) for key, value in what.items()})
            elif kind == "removed":
                for key in what:
                    self._rows.pop(key, None)
            else:
                with self._changed:
                    self._at = what, {key: value for key, (value, _) in self._rows.items()}
                    self._changed.notify_all()

    def all(self, at_least: AtLeast) -> Rows:
        def come() -> bool:
            return all(self._at[0].get(split, -1) >= place for split, place in at_least.items())

        with self._changed:
            assert self._changed.wait_for(come, WAIT), f"it came to {self._at[0]} only, not to {at_least}"
            return dict(self._at[1])

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        return {key: value for key, value in self.all(at_least).items() if key[0] == customer}

    def grouped(self, at_least: AtLeast) -> Sums:
        sums: Sums = {}
        for (customer, _), (total, events) in self.all(at_least).items():
            before = sums.get(customer, (Decimal(0), 0))
            sums[customer] = before[0] + total, before[1] + events
        return sums


class ServerSentEvents(Following):
    """``curl -N``, its events taken apart line by line."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._service = fs.http(address)
        url = f"{self._service.address}/views/{VIEW}/changes"
        self._curl = subprocess.Popen(["curl", "-sSN", url], stdout=subprocess.PIPE, text=True)
        self._thread.start()

    def steps(self) -> Iterator[tuple[str, int | None, Any]]:
        assert self._curl.stdout is not None
        said: dict[str, str] = {}
        for line in self._curl.stdout:
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                said[name] = value
            elif "event" in said:
                yield self._step(said.pop("event"), json.loads(said.pop("data"), parse_float=Decimal))

    def _step(self, kind: str, data: dict[str, Any]) -> tuple[str, int | None, Any]:
        if kind == "position":
            return kind, None, {split: place[0] for split, place in data["answer"]["position"].items()}
        if kind == "removed":
            return (
                kind,
                data["partition"],
                list(rows_of_json([{"total": 0, "events": 0, **each} for each in data["keys"]])),
            )
        return kind, data.get("partition"), rows_of_json(data.get("rows", []))

    def close(self) -> None:
        self._curl.terminate()
        self._curl.wait(10)
        self._thread.join(10)
        assert self._curl.stdout is not None
        self._curl.stdout.close()
        self._service.close()


class FlightChanges(Following):
    """The same over Flight, by the mapping's `changes`."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._changes = reads[VIEW].changes(["customer", "month", "month_end", "total", "events"])
        self._thread.start()

    def steps(self) -> Iterator[tuple[str, int | None, Any]]:
        for change in self._changes:
            if change.kind == "position":
                assert isinstance(change.answer, Answer)
                places: dict[str, int] = {}
                for part in change.answer.parts:
                    for split, place in part.position.items():
                        places[split] = min(places.get(split, place.offset), place.offset)
                yield "position", None, places
            else:
                rows = pa.Table.from_batches([change.rows]).to_pylist()
                found = {(row["customer"], row["month"]): (row["total"], row["events"]) for row in rows}
                yield change.kind, change.partition, list(found) if change.kind == "removed" else found

    def close(self) -> None:
        self._changes.close()
        self._thread.join(10)
