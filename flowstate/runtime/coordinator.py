"""The supervisor of one job as a pure machine: who owns what, who reads what, which cut is open.

Events come in as method calls, instructions go out as lists; the shell (`supervisor`) carries them out and reports back. The truth that
matters is durable: epochs in the partitions' chains, reader epochs and floors in the split records. This machine only decides who is
asked to claim them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowstate.plan.position import NEVER, Floor, Place
from flowstate.runtime.table import ReaderOf, SplitEntry, Table


@dataclass(frozen=True)
class Claim:
    """Raise the partition's epoch in its chain; answer with `claimed`."""

    partition: int


@dataclass(frozen=True)
class Create:
    """Create the actor of this incarnation on `worker`; answer with `create_failed` if it cannot be."""

    partition: int
    epoch: int
    worker: str


@dataclass(frozen=True)
class Discard:
    """This incarnation is replaced: take its actor away."""

    partition: int
    epoch: int
    worker: str


@dataclass(frozen=True)
class RaiseReader:
    """Raise the reader epoch of `split` (first appending `floor`, if given); answer with `reader_raised`."""

    split: str
    partition: int
    floor: Floor | None = None


@dataclass(frozen=True)
class Tell:
    """The table changed: send it to the workers that host partitions."""


@dataclass(frozen=True)
class CutDone:
    """All partitions have taken the cut, at one position. `versions` is filled when it was saved."""

    cut: int
    position: Mapping[str, Place]
    saved: bool = False
    versions: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CutFailed:
    cut: int
    reason: str


Instruction = Claim | Create | Discard | RaiseReader | Tell | CutDone | CutFailed


@dataclass
class Member:
    """A partition as the coordinator sees it. `state` goes vacant, claiming, starting, live, ended; or failed."""

    number: int
    epoch: int = 0
    state: str = "vacant"
    worker: str | None = None
    reason: str | None = None
    failures: int = 0
    refused: bool = False  # the store did not take the last claim
    failed_at: float = 0.0
    live_since: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Seconds, and how often an incarnation may fail in a row before the partition is given up, visibly."""

    cut: float = 5.0
    start: float = 120.0
    settled: float = 5.0
    failures: int = 5
    backoff: float = 0.5


class Coordinator:
    """One job. `splits` are those of the split records; readers are appointed when partitions are live. `spill`: bytes of output that
    may wait for sinks before nothing is read any more."""

    def __init__(
        self,
        partitions: int,
        splits: Mapping[str, SplitEntry],
        *,
        limits: Limits | None = None,
        spill: int | None = None,
    ) -> None:
        self.limits, self.spill = limits or Limits(), spill
        self.spilled = 0
        self.members = {number: Member(number) for number in range(partitions)}
        self.workers: dict[str, str] = {}  # worker address -> Flight location
        self.table = Table(version=1, splits=dict(splits))
        self.raising: dict[str, int] = {}  # split -> partition that is to read it
        self.warm: set[str] = set()
        self.raised: dict[str, int] = {}  # split -> greatest reader epoch that is known to be raised
        self.joining: set[str] = set()  # splits found later that no reader may begin yet
        self.first_floors: dict[str, Floor] = {}  # of splits that join, until a reader is there
        self.cut_taken: dict[int, Mapping[str, Place]] = {}
        self.cut_saved: dict[int, int] = {}
        self.cut_opened: float | None = None
        self.done: CutDone | None = None

    # workers and partitions

    @property
    def all_live(self) -> bool:
        return all(member.state in ("live", "ended") for member in self.members.values())

    def worker_joined(self, address: str, location: str, now: float) -> list[Instruction]:
        self.workers[address] = location
        return self.tick(now)

    def worker_warm(self, address: str) -> None:
        """Its kernels are loaded. A process that has just begun needs seconds for that, which a recovery does not have."""
        self.warm.add(address)

    def worker_lost(self, address: str, now: float, reason: str = "its worker was lost") -> list[Instruction]:
        """Its partitions are vacant, and nobody reads their splits."""
        self.workers.pop(address, None)
        self.warm.discard(address)
        out: list[Instruction] = []
        for member in self.members.values():
            if member.worker == address and member.state != "failed":
                # A machine that dies is not the partition's failure, however often: it is never given up for it, and waits longer only
                # if it had hardly come up, since then it may be what kills its workers.
                lived = member.state in ("live", "ended") and now - member.live_since > self.limits.settled
                member.failures = 0 if lived else min(member.failures, self.limits.failures - 1)
                out += self._vacate(member, reason, now)
        return out + self.tick(now)

    def _vacate(self, member: Member, reason: str, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        if member.worker in self.workers:
            out.append(Discard(member.number, member.epoch, str(member.worker)))
        if now - member.live_since > 60:
            member.failures = 0
        member.failures += 1
        member.reason, member.failed_at = reason, now
        return out + self._leave(member, "vacant" if member.failures <= self.limits.failures else "failed")

    def _leave(self, member: Member, state: str) -> list[Instruction]:
        """It serves and reads nothing any more."""
        member.worker, member.state = None, state
        readers = {split: each for split, each in self.table.readers.items() if each.partition != member.number}
        self.raising = {split: number for split, number in self.raising.items() if number != member.number}
        locations = {number: each for number, each in self.table.locations.items() if number != member.number}
        return self._change(readers=readers, locations=locations)

    def claimed(self, partition: int, epoch: int, now: float) -> list[Instruction]:
        """The epoch is durable: from now on every older incarnation is fenced."""
        member = self.members[partition]
        if member.state != "claiming":
            return []
        worker = self._least_loaded(recovers=member.epoch > 0)
        if worker is None:
            member.state = "vacant"
            return []
        member.epoch, member.state, member.worker, member.live_since = epoch, "starting", worker, now
        member.refused = False
        # In the table at once: a reader that is appointed from now on must not count attaches of the incarnations before this one.
        return [*self._change(epochs={**self.table.epochs, partition: epoch}), Create(partition, epoch, worker)]

    def claim_failed(self, partition: int, reason: str, now: float) -> list[Instruction]:
        member = self.members[partition]
        member.state, member.reason, member.failed_at, member.refused = "vacant", reason, now, True
        return []

    def _least_loaded(self, *, recovers: bool) -> str | None:
        load = dict.fromkeys(self.workers, 0)
        for member in self.members.values():
            if member.worker in load and member.state in ("starting", "live", "ended"):
                load[str(member.worker)] += 1
        cold = {worker: recovers and worker not in self.warm for worker in load}
        return min(load, key=lambda worker: (cold[worker], load[worker], worker), default=None)

    def reported(self, partition: int, epoch: int, report: Mapping[str, Any], now: float) -> list[Instruction]:
        """What an incarnation says of itself. Reports of replaced incarnations do not count."""
        member = self.members[partition]
        if epoch != member.epoch or member.worker is None:
            return []
        member.report = dict(report)
        match report["state"]:
            case "live" | "ended" if member.state == "starting":
                member.state, member.live_since, member.reason = "live", now, None
                locations = {**self.table.locations, partition: self.workers[member.worker]}
                return self._change(locations=locations) + self.tick(now)
            case "ended":
                member.state = "ended"
            case "live" if member.state == "ended":
                member.state = "live"  # a split was found after all
            case "failed" if report.get("final"):
                member.reason = str(report.get("reason"))
                return self._leave(member, "failed") + self.tick(now)
            case "failed" | "fenced":
                return self._vacate(member, str(report.get("reason")), now) + self.tick(now)
        return self._spill_progress() + self._cut_progress(report, partition) + self._join_progress()

    def _spill_progress(self) -> list[Instruction]:
        """Beyond the quota nothing is read until a good part of it is free again. A cut goes on: what is under way is applied."""
        self.spilled = sum(
            int(each.report.get("spilled", 0)) for each in self.members.values() if each.state != "failed"
        )
        if self.spill is None:
            return []
        if not self.table.paused and self.spilled > self.spill:
            return self._change(close=False, paused=True)
        if self.table.paused and self.spilled < 0.8 * self.spill:
            return self._change(close=False, paused=False)
        return []

    def create_failed(self, partition: int, epoch: int, reason: str, now: float) -> list[Instruction]:
        member = self.members[partition]
        if member.epoch != epoch or member.state != "starting":
            return []
        return self._vacate(member, reason, now) + self.tick(now)

    # splits

    def splits_found(self, splits: Mapping[str, SplitEntry], now: float) -> list[Instruction]:
        """Splits that are new to a running job: all owners take them in before anybody reads them."""
        new = {split: entry for split, entry in splits.items() if split not in self.table.splits}
        moved = {
            split: entry for split, entry in splits.items() if self.table.splits.get(split, entry).hint != entry.hint
        }
        if not new and not moved:
            return []
        self.joining |= new.keys()
        known = {**self.table.splits, **new}
        known |= {split: replace(known[split], hint=entry.hint, label=entry.label) for split, entry in moved.items()}
        return self._change(splits=known) + self.tick(now)

    def _join_progress(self) -> list[Instruction]:
        """When every partition holds its watermark for a joining split, the greatest of them is the split's first floor."""
        reports = [member.report for member in self.members.values()]
        if not self.joining or not self.all_live:
            return []
        ready = [split for split in sorted(self.joining) if all(split in each.get("position", ()) for each in reports)]
        out: list[Instruction] = []
        for split in ready:
            self.joining.discard(split)
            reached = max(int(each["reached"]) for each in reports)
            if reached > NEVER:
                self.first_floors[split] = Floor(self.table.splits[split].start, reached)
            out += self._appoint(split)
        return out

    def _appoint(self, split: str) -> list[Instruction]:
        """Every request for a split that joins carries its first floor, until one of them is answered: whoever reads first needs it."""
        live = [member.number for member in self.members.values() if member.state in ("live", "ended")]
        if not live:
            return []
        load = dict.fromkeys(live, 0)
        for number in [each.partition for each in self.table.readers.values()] + list(self.raising.values()):
            if number in load:
                load[number] += 1
        chosen = min(load, key=lambda number: (load[number], number))
        self.raising[split] = chosen
        return [RaiseReader(split, chosen, self.first_floors.get(split))]

    def reader_raised(self, split: str, partition: int, epoch: int, now: float) -> list[Instruction]:
        """Requests that were given up still land, in any order: only the greatest epoch of a split can read, so a smaller one that is
        waited for is raised again, and a reader that was overtaken is replaced."""
        newest = self.raised[split] = max(epoch, self.raised.get(split, 0))
        if self.raising.get(split) == partition:
            del self.raising[split]
            if epoch == newest:
                self.first_floors.pop(split, None)
                return self._change(readers={**self.table.readers, split: ReaderOf(epoch, partition)})
            return self.tick(now)
        if split in self.table.readers and self.table.readers[split].epoch < newest:
            return self.move(split, now)
        return []

    def raise_failed(self, split: str, now: float) -> list[Instruction]:
        """The store did not take it, or did and the answer was lost. It is tried again at the next tick, with the same floor; and whoever
        was appointed by another request meanwhile may have been overtaken by this one without anybody knowing, so he is replaced."""
        self.raising.pop(split, None)
        return self.move(split, now)

    def move(self, split: str, now: float) -> list[Instruction]:
        """Take a split from its reader; another is appointed, or the same one under a new epoch."""
        if split not in self.table.readers:
            return []
        readers = {each: reader for each, reader in self.table.readers.items() if each != split}
        return self._change(readers=readers) + self.tick(now)

    # cuts

    def open_cut(self, now: float, *, saves: bool) -> int | None:
        """The number of a new cut, or None while one is open."""
        if self.cut_opened is not None:
            return None
        self.cut_taken, self.cut_opened = {}, now
        if saves:  # one for readers leaves alone what is still being saved
            self.cut_saved, self.done = {}, None
        self.table = replace(
            self.table, version=self.table.version + 1, cut=self.table.cut + 1, closed=self.table.cut, saves=saves
        )
        return self.table.cut

    def _cut_progress(self, report: Mapping[str, Any], partition: int) -> list[Instruction]:
        """C4: done when the views of all current incarnations are there, at equal positions."""
        taken = report.get("cut")
        if taken and self.cut_opened is not None and taken["cut"] == self.table.cut:
            self.cut_taken[partition] = {split: Place(*place) for split, place in taken["position"].items()}
            if len(self.cut_taken) == len(self.members):
                positions = list(self.cut_taken.values())
                self.cut_opened = None
                # Nobody waits to hear of its end, since all have let go of what they held: the next table tells it.
                self._change(close=False, closed=self.table.cut)
                if any(position != positions[0] for position in positions):
                    return [CutFailed(self.table.cut, "partitions took the cut at different positions")]
                done = CutDone(self.table.cut, positions[0])
                if self.table.saves:
                    self.done = done
                return [done]
        saved = report.get("cut_saved")
        if saved and self.done is not None and saved["cut"] == self.done.cut:
            if "version" not in saved:  # it is in no manifest of this partition: another cut may be
                cut, self.done = self.done.cut, None
                return [CutFailed(cut, str(saved["reason"]))]
            self.cut_saved[partition] = saved["version"]
            if len(self.cut_saved) == len(self.members):
                done, self.done = replace(self.done, saved=True, versions=dict(self.cut_saved)), None
                return [done]
        return []

    # changes and time

    def _change(self, *, close: bool = True, **news: Any) -> list[Instruction]:
        """C3: every change closes the cut that is open."""
        out: list[Instruction] = [Tell()]
        if close:
            news["closed"] = self.table.cut
            if self.cut_opened is not None:
                self.cut_opened = None
                out.append(CutFailed(self.table.cut, "a partition or a split moved meanwhile"))
        self.table = replace(self.table, version=self.table.version + 1, **news)
        return out

    def drain(self) -> list[Instruction]:
        return [] if self.table.draining else self._change(draining=True)

    def stop(self) -> list[Instruction]:
        return [] if self.table.stopping else self._change(stopping=True)

    def tick(self, now: float) -> list[Instruction]:
        """Vacant partitions are claimed, splits without a reader get one, a cut that takes too long is closed."""
        out: list[Instruction] = []
        for member in self.members.values():
            wait = self.limits.backoff * (2 ** (member.failures - 1) if member.failures > 1 else member.refused)
            if member.state == "vacant" and self.workers and now - member.failed_at >= wait:
                member.state = "claiming"
                out.append(Claim(member.number))
            elif member.state == "starting" and now - member.live_since > self.limits.start:
                out += self._vacate(member, "it did not come up in time", now)
        settled = all(
            member.state not in ("vacant", "claiming", "starting") or member.failures
            for member in self.members.values()
        )
        for split in self.table.splits:
            # At first all partitions are waited for, so that splits are spread evenly. Whose reader died is read on by who is there.
            due = settled or split in self.raised
            if due and split not in self.table.readers and split not in self.raising and split not in self.joining:
                out += self._appoint(split)
        if settled:
            out += self._join_progress()
        if self.cut_opened is not None and now - self.cut_opened > self.limits.cut:
            cut, self.cut_opened = self.table.cut, None
            out += [*self._change(closed=cut), CutFailed(cut, "it was not aligned in time")]
        return out

    @property
    def given_up(self) -> dict[int, str]:
        """Partitions that failed for good, with the reason."""
        return {each.number: str(each.reason) for each in self.members.values() if each.state == "failed"}

    @property
    def finished(self) -> bool:
        """Everything is read to its end and handed over. A report that was sent before a split was found says nothing of it."""
        return all(
            member.state == "ended"
            and member.report.get("ended")
            and self.table.splits.keys() <= member.report["position"].keys()
            for member in self.members.values()
        )
