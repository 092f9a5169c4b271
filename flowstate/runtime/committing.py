"""What of a partition becomes durable, when, and in which order it leaves: a pure machine.

The shell asks it what is due, carries that out, and says how it went: a worker's pump does, and so does a simulation. It holds no thread,
no store and no clock. One save is under way at a time (`begin` -> `saved` or `failed`). Of each sink one output is being published at a
time (`to_publish` -> `published`), in the order in which manifests name them; what waits for that holds up neither saves nor other sinks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowstate.errors import Fenced, InternalError
from flowstate.plan.nodes import shown_url
from flowstate.plan.output import StagedOutput
from flowstate.plan.position import Place
from flowstate.runtime.contents import Contents, Frozen
from flowstate.runtime.output import Due
from flowstate.snapshot.manifest import Manifest

MEMORY = 64 << 20  # bytes of output in memory that a save does not wait for
AGAIN = 1.0  # seconds, at most, until a save that failed is tried again


@dataclass(frozen=True)
class SaveWork:
    """One save. `number` is unique in this incarnation; `cut` is set when the frozen state is that of a cut.

    `unpublished` are outputs that the manifest goes on naming, `open` those that sinks may replace. `shares`: `previous` was saved by
    this incarnation, so unchanged chunks can be shared with it. `ended`: the input has ended and nothing may stay open. `changed`: false
    if it only looks after open files and sinks that stalled; then there need not be a new manifest. `as_of`: Unix time of `frozen`, which
    a save may wait long after; None: when its state is written.
    """

    number: int
    frozen: Frozen
    due: Mapping[int, Due]
    unpublished: tuple[StagedOutput, ...]
    open: tuple[StagedOutput, ...]
    previous: Manifest
    shares: bool
    ended: bool
    changed: bool
    cut: int | None
    as_of: float | None = None

    def open_of(self, sink: int) -> list[StagedOutput]:
        return [each for each in self.open if each.sink == sink]


@dataclass(frozen=True)
class Saved:
    """`manifest`: the one that was committed; `SaveWork.previous` if there was nothing to say; None if a newer incarnation owns the
    partition. `stalled`: sinks whose rows could not be made or staged, and why."""

    manifest: Manifest | None
    stalled: Mapping[int, str]


class Committing:
    """Saves and output of one incarnation, from the manifest and the contents that it was restored with. `every` is seconds, and so is
    `now` everywhere, by any clock that does not go back. What is wrong is in `problems`, until it is not."""

    def __init__(
        self,
        partition: int,
        contents: Contents,
        manifest: Manifest,
        *,
        every: float,
        now: float,
        problems: dict[str, str] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.partition, self.contents, self.manifest = partition, contents, manifest
        self.every, self.memory = every, memory
        self.problems: dict[str, str] = {} if problems is None else problems
        self.work: SaveWork | None = None
        self.numbers = 0
        self.rejected: Counter[int] = Counter()  # sink -> rows that the other side refused for good
        self._shares = False
        self._unsure = False  # whether `manifest` is the newest: a save that failed may have landed all the same
        self._wanted = now + 2 * every  # by itself only when no saved cut came for twice the interval
        self._again = now
        self._stalled: Mapping[int, str] = {}
        self._finished: dict[str, Place] | None = None  # the position at which a save finished everything that was open
        self._publishing: dict[int, StagedOutput] = {}
        self._published: set[StagedOutput] = set()

    # saves

    @property
    def saving(self) -> bool:
        return self.work is not None

    def due(self, ended: bool, now: float) -> bool:
        """Whether a save is to begin now, cuts apart. `ended`: every split of the job has passed its end here."""
        if self.saving or now < self._again:
            return False
        if not ended:
            return now >= self._wanted or self.contents.output_bytes > self.memory
        if self.end_saved:
            return False
        # The first save at the end finishes what is open; the one that may say so waits until all is published.
        return self._finished != self.contents.marks.position or not self.unpublished

    @property
    def end_saved(self) -> bool:
        """The newest manifest says that everything has ended and left. It may have said so of an end before the last split joined."""
        state = self.manifest.state
        ended = self.manifest.ended and not self._unsure
        return ended and state is not None and state.marks == self.contents.marks.dump()

    def begin(
        self, frozen: Frozen, *, ended: bool, cut: int | None, now: float, wall: float | None = None
    ) -> SaveWork | None:
        """The save of `frozen`, which was taken in this very moment (`wall`, Unix time).

        None if the newest manifest says it all; `frozen` is released then."""
        if self.work is not None:
            raise InternalError("a save began before the last one was over", partition=self.partition)
        self._wanted = now + 2 * self.every
        state, unpublished = self.manifest.state, self.unpublished
        opened = tuple(each for each in self.manifest.staged if each.open)
        changed = not (
            self._shares
            and not self._unsure
            and state is not None
            and state.marks == frozen.marks.dump()
            and len(unpublished) + len(opened) == len(self.manifest.staged)
            and not self.contents.output_bytes
            and (self.manifest.ended or not ended)
        )
        if not changed and not opened and not self._stalled:
            frozen.release()
            return None
        self.numbers += 1
        self.work = SaveWork(
            self.numbers,
            frozen,
            self.contents.take(frozen),
            unpublished,
            opened,
            self.manifest,
            self._shares,
            ended,
            changed,
            cut,
            wall,
        )
        return self.work

    def saved(self, work: SaveWork, saved: Saved, now: float) -> None:
        """Fenced if a newer incarnation owns the partition: this one stops, and has handed over nothing by this save."""
        self._over(work)
        if saved.manifest is None:
            work.frozen.release()
            raise Fenced("a newer run owns this partition", partition=self.partition, epoch=self.manifest.epoch)
        self.contents.settle(work.frozen, saved.stalled)
        work.frozen.release()
        self.problems.pop("snapshot", None)
        for sink in work.due:
            self.problems.pop(f"sink {sink}", None)
        for sink, reason in saved.stalled.items():
            self.problems[f"sink {sink}"] = reason
            self._again = now + self.every
        self._stalled = saved.stalled
        if work.ended and not saved.stalled:
            self._finished = work.frozen.marks.position
        self.manifest, self._shares, self._unsure = saved.manifest, True, False
        self._published &= set(saved.manifest.staged)

    def failed(self, work: SaveWork, reason: str, now: float) -> None:
        """Nothing is lost: what was to be handed over waits, and the next save tries again."""
        self._over(work)
        self._unsure = True
        self.contents.settle_failed()
        work.frozen.release()
        self.problems["snapshot"] = reason
        self._wanted = self._again = now + min(AGAIN, self.every)

    def _over(self, work: SaveWork) -> None:
        if self.work is not work:
            raise InternalError("a save was over twice", partition=self.partition, number=work.number)
        self.work = None

    # publishing

    @property
    def unpublished(self) -> tuple[StagedOutput, ...]:
        """What the newest manifest names and may be published, and is not known to be."""
        return tuple(each for each in self.manifest.staged if not each.open and each not in self._published)

    def to_publish(self) -> list[StagedOutput]:
        """What is to be published now: at most one output of each sink. The shell repeats each until it is `published`."""
        first: dict[int, StagedOutput] = {}
        for each in self.unpublished:
            first.setdefault(each.sink, each)
        start = {sink: each for sink, each in first.items() if sink not in self._publishing}
        self._publishing |= start
        return list(start.values())

    def published(self, staged: StagedOutput, rejected: int = 0) -> None:
        """`rejected`: how many of its rows the other side refused for good."""
        self._publishing.pop(staged.sink, None)
        self._published.add(staged)
        self.rejected[staged.sink] += rejected

    # what there is

    @property
    def spilled(self) -> int:
        """Bytes of output that wait: staged and not published, and in memory alone. Open files wait for nobody, and do not count."""
        return sum(each.bytes for each in self.unpublished) + self.contents.output_bytes

    def describe(self, wall: float) -> list[dict[str, Any]]:
        """Per sink, as plain data: how many outputs wait, their bytes (with what is in memory) and the seconds that the oldest has, open
        files, rejected rows. `wall` is Unix time. May be asked by any thread: numbers may be of slightly different moments."""
        staged, unpublished = self.manifest.staged, self.unpublished
        reports = []
        for output in self.contents.outputs:
            number, sink = output.number, output.sink
            waiting = [each for each in unpublished if each.sink == number]
            reports.append(
                {
                    "kind": sink.kind,
                    "mode": sink.mode,
                    "table": sink.table,
                    "url": shown_url(sink.url),
                    "waiting": len(waiting),
                    "bytes": sum(each.bytes for each in waiting) + output.size.bytes,
                    "oldest": max((max(0.0, wall - each.since) for each in waiting), default=0.0),
                    "open": sum(each.open and each.sink == number for each in staged),
                    "rejected": self.rejected[number],
                    "problem": self.problems.get(f"sink {number}") or self.problems.get(f"publishing sink {number}"),
                }
            )
        return reports
