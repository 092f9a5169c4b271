"""What must hold in a simulation, whatever happens: the invariants of docs/protocol.md, against a reference that knows only the log."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flowstate.plan.position import FOREVER, Place
from flowstate.plan.spec import EPOCH, REVISION
from flowstate.runtime import coordinator as supervising
from flowstate.runtime.contents import Frozen
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.testing.adversity.fault import Fault
from flowstate.testing.adversity.log import CHANGES, DEAD, FINAL, LATE, STREAM, Prefix

if TYPE_CHECKING:
    from flowstate.testing.adversity.incarnation import Incarnation
    from flowstate.testing.adversity.world import World

Row = tuple[str, int, int, int]  # key, end of window, total, events


class Checks:
    """Each raises `Fault`."""

    def __init__(self, world: World) -> None:
        self.world, self.reference = world, world.splits.reference

    # while it runs

    def state(self, incarnation: Incarnation) -> None:
        """I4, and now and then I2."""
        marks = incarnation.contents.marks
        for split, place in incarnation.last_places.items():
            if marks.position[split] < place:
                raise Fault("a position moved back")
        incarnation.last_places = dict(marks.position)
        if incarnation.machine is not None and incarnation.machine.refused:
            raise Fault("a stream has a hole")
        if self.world.happens(self.world.check_rate):
            frozen = incarnation.contents.freeze()
            self.frozen(incarnation, frozen)
            frozen.release()

    def frozen(self, incarnation: Incarnation, frozen: Frozen) -> None:
        """I2: totals, balances, late rows, dead letters and watermark are those of the reference at this position."""
        self.world.counts["checks"] += 1
        marks, reference = frozen.marks, self.reference
        for split, place in marks.position.items():
            end = reference.ends.get(split)
            if end is not None and place.offset > end and marks.newest[split] != FOREVER:
                newest = incarnation.saver.chain.load()
                if newest is None or newest.epoch <= incarnation.epoch:
                    raise Fault(f"an owner that may still commit is past the end of {split}: {place}")
                return  # a zombie that follows a zombie; its place is none that anybody else can reach
        watermark = reference.watermark(marks.position)
        if marks.watermark() != watermark or marks.reached < watermark:
            raise Fault(f"the watermark is not the reference's: {marks.watermark()} is not {watermark}")
        self._keyed(incarnation, frozen)
        self._appended(incarnation, frozen)

    def _keyed(self, incarnation: Incarnation, frozen: Frozen) -> None:
        marks, owner = frozen.marks, self.world.owner_of_key
        expected: dict[Any, Any] = {
            key: value
            for key, value in self.reference.totals(marks.position).items()
            if owner[key[0]] == incarnation.number and not self.expired(key[1], marks.passed)
        }
        found: dict[Any, Any] = {(key, end): (total, count) for key, end, total, count in total_rows(frozen)}
        if incarnation.restored_older:  # what had expired before the damage comes back until something expires again
            found = {key: value for key, value in found.items() if not self.expired(key[1], marks.passed)}
        if "bank" in frozen.views:
            balances = self.reference.balances(marks.position)
            expected |= {account: each for account, each in balances.items() if owner[account] == incarnation.number}
            found |= balance_rows(frozen)
        if found != expected:
            wrong = {key: (found.get(key), expected.get(key)) for key in found.keys() | expected.keys()}
            raise Fault(
                f"state at a position: { ({k: v for k, v in wrong.items() if v[0] != v[1]}) } (found, expected)"
            )

    def _appended(self, incarnation: Incarnation, frozen: Frozen) -> None:
        late, dead = set(), set()
        for split, place in frozen.marks.position.items():
            if self.world.splits.owner(split) == incarnation.number:
                prefix = self.reference.prefix(split, place)
                late |= {(split, offset) for offset, _ in prefix.late}
                dead |= {(split, offset) for offset in prefix.dead}
        for name, expected in (("totals_late", late), ("dead_letters", dead)):
            count = sum(frozen.extras[name]["counts"].values())
            rows = [row for batch in frozen.views[name].batches(["split", "offset"]) for row in batch.to_pylist()]
            if {(row["split"], row["offset"]) for row in rows} != expected or count != len(expected):
                raise Fault(f"{name} at a position: {count} rows, expected {len(expected)}")

    def expired(self, end: int, passed: int) -> bool:
        keep = self.world.keep
        return keep is not None and end + keep * 1_000_000 <= passed

    # cuts

    def saved_cut(self, done: supervising.CutDone) -> None:
        """A saved cut names states at its own position."""
        self.world.counts["saved cuts"] += 1
        for number, version in done.versions.items():
            state = PartitionChain(self.world.store, 1, number).read(version).state
            places = {split: tuple(mark[:2]) for split, mark in state.marks.items()} if state else {}
            if places != {split: tuple(place) for split, place in done.position.items()}:
                raise Fault("a saved cut names a manifest at another position")

    def cut(self, done: supervising.CutDone, parts: Sequence[Frozen]) -> None:
        """I3: one position everywhere, and the whole is the reference at it. In the bank nothing is lost and nothing made."""
        self.world.counts["cuts"] += 1
        found: Counter[tuple[str, int]] = Counter()
        events: Counter[tuple[str, int]] = Counter()
        bank = 0
        for frozen in parts:
            if frozen.marks.position != done.position:
                raise Fault("a done cut is not at one position")
            for key, end, total, count in total_rows(frozen):
                found[key, end] += total
                events[key, end] += count
            bank += sum(balance_rows(frozen).values()) if "bank" in frozen.views else 0
        passed = max(frozen.marks.passed for frozen in parts)
        for row, expected in self.reference.totals(done.position).items():
            if (found[row], events[row]) != expected and not self.expired(row[1], passed):
                raise Fault(f"a done cut is not the reference: {row} has {found[row]}, not {expected}")
        if bank:
            raise Fault(f"the bank has {bank} in a cut")

    # at the end

    def end(self) -> None:
        """I1: what was published, as a multiset, is what the log says, once."""
        places = self._end_places()
        self._rows_once("final rows", FINAL, ((*key, *each) for key, each in self.reference.totals(places).items()))
        self._changes(places)
        if len(self.world.targets) > STREAM:
            prefixes = {split: self.reference.prefix(split, place) for split, place in places.items()}
            late = ((split, offset) for split, each in prefixes.items() for offset, _ in each.late)
            self._rows_once("late rows", LATE, late)
            self._rows_once("dead letters", DEAD, ((split, at) for split, each in prefixes.items() for at in each.dead))
            self._rows_once("rows of the stream", STREAM, self._big(prefixes))

    def _big(self, prefixes: Mapping[str, Prefix]) -> list[tuple[Any, ...]]:
        offsets = {split: set(each.big) for split, each in prefixes.items()}
        return [
            (record.key, record.time, record.amount)
            for split, log in self.world.splits.logs.items()
            for record in log.records
            if record.offset in offsets[split]
        ]

    def _end_places(self) -> dict[str, Place]:
        position: dict[str, Any] = {}
        for number in range(self.world.partitions):
            manifest = PartitionChain(self.world.store, 1, number).load()
            if manifest is None or manifest.state is None or not manifest.ended:
                raise Fault("a partition ended without saying so in its chain")
            marks = {split: mark[:2] for split, mark in manifest.state.marks.items()}
            if position and marks != position:
                raise Fault("partitions ended at different positions")
            position = marks
        places = {split: Place(*place) for split, place in position.items()}
        if places.keys() != self.world.splits.logs.keys():
            raise Fault(f"a split was never read: {self.world.splits.logs.keys() - places.keys()}")
        for split, end in self.reference.ends.items():
            if end is None or places[split] != (end + 1, len(self.reference.floors[split])):
                raise Fault(f"a split did not end where its record says: {split} {places[split]} {end}")
        return places

    def _rows_once(self, what: str, sink: int, rows: Iterable[tuple[Any, ...]]) -> None:
        expected, found = Counter(rows), Counter(_COLUMNS[sink](row) for row in self._published(sink))
        if found != expected:
            raise Fault(f"{what}: too much {dict(found - expected)}, missing {dict(expected - found)}")

    def _changes(self, places: Mapping[str, Place]) -> None:
        """No revision twice, and the greatest of each row is what holds at the end."""
        seen: dict[tuple[str, int], dict[tuple[int, int], tuple[int, int]]] = {}
        for row in self._published(CHANGES):
            revisions = seen.setdefault((row["key"], _micros(row["span_end"])), {})
            revision = (int(row[EPOCH]), int(row[REVISION]))
            if revision in revisions:
                raise Fault(f"a revision came twice: {row}")
            revisions[revision] = (int(row["total"]), int(row["events"]))
        last = {key: revisions[max(revisions)] for key, revisions in seen.items()}
        expected = self.reference.totals(places)
        if last != expected:
            wrong = {key: (last.get(key), expected.get(key)) for key in last.keys() | expected.keys()}
            raise Fault(f"last revisions: { ({k: v for k, v in wrong.items() if v[0] != v[1]}) } (found, expected)")

    def _published(self, sink: int) -> list[dict[str, Any]]:
        texts = [data.decode() for data in self.world.targets[sink].objects.values()]
        if self.world.plan.sinks[sink].kind == "csv":
            return [row for text in texts for row in csv.DictReader(io.StringIO(text))]
        return [json.loads(line) for text in texts for line in text.splitlines()]


def _micros(text: str) -> int:
    return round((datetime.fromisoformat(text) - _BEGINNING) / timedelta(microseconds=1))


_BEGINNING = datetime.fromtimestamp(0, UTC)
#: What tells rows of a sink apart.
_COLUMNS: dict[int, Callable[[dict[str, Any]], tuple[Any, ...]]] = {
    FINAL: lambda row: (row["key"], _micros(row["span_end"]), int(row["total"]), int(row["events"])),
    LATE: lambda row: (row["split"], row["offset"]),
    DEAD: lambda row: (row["split"], row["offset"]),
    STREAM: lambda row: (row["key"], _micros(row["at"]), int(row["amount"])),
}


def total_rows(frozen: Frozen) -> list[Row]:
    rows: list[Row] = []
    for batch in frozen.views["totals"].batches():
        columns = [batch.column(name).to_pylist() for name in ("key", "total", "events")]
        ends = batch.column("span_end").cast("int64").to_pylist()
        rows += [
            (key, end, total, events) for key, end, total, events in zip(columns[0], ends, *columns[1:], strict=True)
        ]
    return rows


def balance_rows(frozen: Frozen) -> dict[str, int]:
    found: dict[str, int] = {}
    for batch in frozen.views["bank"].batches():
        found |= dict(zip(batch.column("account").to_pylist(), batch.column("balance").to_pylist(), strict=True))
    return found
