"""Looking at a job again and again: its supervisor is asked, by way of any worker or gateway; or else its partitions, or what it saved."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flowstate.clock import SystemClock
from flowstate.command.place import Place
from flowstate.command.sight import PartitionSight, Sight, of_overview, splits_of
from flowstate.command.tables import filled, system_tables, table
from flowstate.errors import FlowstateError, InvalidFlow, Unavailable
from flowstate.view import troubles
from flowstate.view.answer import Answer
from flowstate_flight.client import FlightReader
from flowstate_flight.controlling import controlled

if TYPE_CHECKING:
    from flowstate.runtime.saved_states import SavedStates


class Observer:
    """Of the job that `reader` reads, which may move, end and come again meanwhile. Used by one thread."""

    def __init__(self, place: Place, reader: FlightReader, saved: SavedStates | None) -> None:
        self._place, self._reader, self._saved = place, reader, saved
        self._clock = SystemClock()
        self._last: Sight | None = None
        self._labels: dict[str, dict[str, str]] = {}  # of splits, as the supervisor calls them

    def look(self) -> Sight:
        """The job as it is now. Raises InvalidFlow where it may not be looked at; what is away is told, and not raised."""
        try:
            sight = of_overview(controlled(self._reader, "overview"), self._clock.wall())
            if sight.state in ("stopped", "fenced"):
                with suppress(FlowstateError):
                    self._reader.refresh()  # it may have begun again elsewhere
                sight = of_overview(controlled(self._reader, "overview"), self._clock.wall())
        except InvalidFlow:  # it may be looked at by its partitions alone
            sight = self._by_partitions("running", [])
        except FlowstateError as error:
            with suppress(FlowstateError):
                self._reader.refresh()
            sight = self._down(error)
        self._last = sight
        self._labels |= {each.split: {"label": each.label} for each in sight.splits}
        return sight

    def _down(self, error: FlowstateError) -> Sight:
        """Nobody knows more than the partitions that are still there, and what was saved."""
        try:
            sight = self._by_partitions("down", [])
        except FlowstateError:
            sight = self._before("down")
        live = [each for each in sight.partitions if each.state == "live"]
        said = troubles.UNLED if live else troubles.DOWN
        reason = error.message if isinstance(error, Unavailable) else str(error)
        first = (
            f"{said} ({reason})" if live else f"{said} ({reason.removeprefix('the job is down: ')}); {troubles.START}"
        )
        state = "running" if live else "down"
        return replace(sight, state=state, troubles=(first, *sight.troubles))

    def _before(self, state: str) -> Sight:
        last = self._last
        if last is None:
            return Sight(self._clock.wall(), self._reader.directory().job, state)
        parts = tuple(
            PartitionSight(each.number, "away", each.epoch, saved_at=each.saved_at) for each in last.partitions
        )
        return Sight(self._clock.wall(), last.job, state, last.run, None, last.snapshot, last.saved_at, parts)

    def _by_partitions(self, state: str, wrong: list[str]) -> Sight:
        """Raises Unavailable if no partition answers, and nothing saved."""
        reader = self._reader
        with system_tables(reader, self._saved) as system:
            tables = {name: table(system, name) for name in ("partitions", "positions", "snapshots", "sinks")}
        answer = None
        with suppress(FlowstateError):
            view = next(iter(reader.views()))
            answer = Answer.of(reader.scan(view, reader.info(view).schema.names[:1], limit=0).schema)
        if answer is not None:
            tables = filled(tables, answer)
        rows: list[dict[str, Any]] = tables["partitions"].to_pylist()
        places: dict[int, dict[str, int]] = {}
        for each in tables["positions"].to_pylist():
            places.setdefault(each["partition"], {})[each["split"]] = each["offset"]
        parts = tuple(
            PartitionSight(
                row["partition"],
                row["state"],
                row["epoch"] or 0,
                row["location"] or "",
                watermark=None if row["watermark"] is None else int(row["watermark"].timestamp() * 1e6),
                saved_at=row["as_of"].timestamp() if row["state"] == "saved" and row["as_of"] else None,
                position=places.get(row["partition"], {}),
            )
            for row in rows
        )
        sinks = tables["sinks"].to_pylist()
        newest = max(tables["snapshots"].to_pylist(), key=lambda each: each["snapshot"], default=None)
        now = self._clock.wall()
        for part in parts if any(each.state == "live" for each in parts) else ():
            if part.state != "live":
                saved = None if part.saved_at is None else max(0.0, now - part.saved_at)
                wrong.append(troubles.away(part.number, "no worker serves it", saved))
        return Sight(
            now,
            reader.directory().job,
            state,
            None,
            len({each.place for each in parts if each.state == "live"}),
            None if newest is None else newest["snapshot"],
            None if newest is None else newest["at"].timestamp(),
            parts,
            tuple(splits_of(parts, self._labels, {})),
            tuple(sinks),
            (*wrong, *(each for _, each in troubles.sinks(sinks))),
        )
