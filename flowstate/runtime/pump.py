"""The thread of a partition: it drives the machine and carries out its instructions.

Nothing here decides anything about the protocol. Other threads talk to the pump by posting; the pump never waits for another pump, for a
send, or for the store. Readers of the state share the gate with it, one block at a time.
"""

from __future__ import annotations

import atexit
import gc
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from time import thread_time
from typing import Any, Protocol

from flowstate.clock import Clock
from flowstate.errors import Fenced, FlowstateError, InternalError
from flowstate.exchange.message import Attach, Marker, Message, StreamId
from flowstate.exchange.route import Router
from flowstate.plan.event_times import warm_up as warm_up_times
from flowstate.plan.position import Floor
from flowstate.runtime.aside import Aside
from flowstate.runtime.awaited import Awaited
from flowstate.runtime.commits import Commits
from flowstate.runtime.contents import Contents, Frozen
from flowstate.runtime.gate import Gate
from flowstate.runtime.instructions import (
    Acknowledge,
    Close,
    CutTaken,
    Instruction,
    LoadRecord,
    Put,
    RecordFloor,
    ResolveEnd,
    SendAttach,
)
from flowstate.runtime.intake import Intake
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.link import Port
from flowstate.runtime.pace import Looks, Pace, pause
from flowstate.runtime.partition import Partition, Patience
from flowstate.runtime.prepare import Preparer
from flowstate.runtime.saving import Saver
from flowstate.runtime.table import Table
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.source import warm_up as warm_up_readers
from flowstate.state.kernels import warm_up

_settled = threading.Lock()


def _settle() -> None:
    """Once in a process: what is loaded by now stays, so that no later collection of garbage looks at it again. It would keep every thread
    waiting while it does (50 ms and more, for the 200,000 objects of a Dask worker)."""
    if _settled.acquire(blocking=False):
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries that count what is left at the end would complain


class Surroundings(Protocol):
    """What the pump needs of its worker process."""

    def port(self, pump: Pump, location: str | None) -> Port:
        """The way to the partitions at `location`."""

    def report(self, pump: Pump, *, urgent: bool = False) -> None:
        """Something happened that the supervisor should know."""

    def keep_cut(self, pump: Pump, cut: int, frozen: Frozen) -> None:
        """Hold a cut for its readers."""


class Pump:
    """One incarnation of a partition, from loading to its end."""

    def __init__(
        self,
        spec: JobSpec,
        number: int,
        epoch: int,
        saver: Saver,
        records: SplitRecords,
        surroundings: Surroundings,
        pool: Executor,
        clock: Clock,
    ) -> None:
        self.spec, self.number, self.epoch = spec, number, epoch
        self.saver, self.records, self.surroundings, self.pool, self.clock = saver, records, surroundings, pool, clock
        self.gate = Gate()
        self.state, self.reason = "loading", ""
        self.machine: Partition | None = None
        self.intake = Intake(spec.plan.sources, clock)
        self.problems: dict[str, str] = {}
        self.damaged: list[str] = []
        self.commits: Commits | None = None
        self.cut: dict[str, Any] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self.awaited = Awaited()
        self._stopping = False
        self._tables: list[Table] = []
        self._incoming: dict[StreamId, Port] = {}  # streams that this owner reads
        self._outgoing: dict[StreamId, Port] = {}  # streams that this reader writes
        self._slowed = False
        self._ask_end: dict[str, float] = {}
        self._pace, self._looks = Pace(spec.block_rows, len(spec.plan.routes)), Looks()
        self._aside = Aside(pool, self._post, self.problems)
        self._thread = threading.Thread(target=self._run, name=f"flowstate-{spec.name}-p{number}-e{epoch}", daemon=True)

    # from other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Only a signal; `join` waits."""
        self._stopping = True
        self._wake.set()

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def hear(self, table: Table) -> None:
        self._post(partial(self._hear, table))

    def post_attach(self, attach: Attach, port: Port) -> None:
        self._post(partial(self._accept, attach, port))

    def post_message(self, stream: StreamId, message: Message) -> None:
        self._post(partial(self._receive, stream, message))

    def post_acknowledged(self, stream: StreamId, count: int) -> None:
        self._post(partial(self._acknowledged, stream, count))

    def post_closed(self, stream: StreamId) -> None:
        self._post(partial(self._closed, stream))

    def _post(self, event: Callable[[], None]) -> None:
        self._inbox.append(event)
        self._wake.set()

    # the thread

    def _run(self) -> None:
        try:
            self._load()
            self._carry_on()
        except Fenced as error:
            self.state, self.reason = "fenced", str(error)
        except FlowstateError as error:
            self.state, self.reason = "failed", f"{type(error).__name__}: {error}"
        except Exception as error:  # whatever it is, it must be seen: the supervisor replaces this incarnation
            self.state, self.reason = "failed", f"{type(error).__name__}: {error}"
            import logging

            logging.getLogger("flowstate").exception("partition %s of %s failed", self.number, self.spec.name)
        finally:
            self._close()
            self.awaited.end()  # now that the state says why: whoever waited must not take it for slow
            self._report()

    def _load(self) -> None:
        warm_up()
        warm_up_readers()
        warm_up_times()
        _settle()
        manifest, contents, self.damaged = self.saver.load()
        router = Router(partitions=self.spec.partitions, groups=self.spec.key_groups, seed=self.spec.seed)
        self.machine = Partition(
            self.number,
            self.epoch,
            self.spec.partitions,
            contents,
            Preparer(self.spec.plan, router),
            patience=Patience(idle=self.spec.idle_after),
        )
        self.commits = Commits(
            self.saver, (manifest, contents), self.pool, self.clock, self.problems, self._post, self._report
        )
        self.state = "live"
        self._report()

    def _carry_on(self) -> None:
        machine = self._machine
        applied, rows_at = machine.contents.applied_rows, self.clock.monotonic()
        while not self._stopping:
            moved = self._drain_inbox()
            moved |= self._consume(machine)
            moved |= self._fill(machine)
            moved |= self._drain_inbox()
            if machine.cut_is_open:
                moved |= self._align(machine)
            if moved:
                self.awaited.tell()
            if ahead := machine.forward(self._pace.rows):
                self._pace.sent()
                self._carry_out(ahead)
                moved = True
            now = self.clock.monotonic()
            wait, begun = pause(now - rows_at), thread_time()
            rest = self._looks.rest(now, begun)
            read = 0 if rest else self._read(machine, machine.reads(), 0.0 if moved else wait)
            if not rest:
                self._looks.looked(read, begun)
            now = self.clock.monotonic()
            if read or machine.contents.applied_rows != applied:
                applied, rows_at = machine.contents.applied_rows, now
            instructions = machine.tick(now)
            self._carry_out(instructions)
            self._declare_idle(machine, now)
            self._save_if_due(machine, now)
            if rest and not (moved or self._inbox):
                self._wake.wait(rest)
            elif not (moved or read or self.intake.waited or self._inbox):
                self._wake.wait(wait)
            self._wake.clear()

    def _drain_inbox(self) -> bool:
        moved = False
        while self._inbox:
            self._inbox.popleft()()
            moved = True
        return moved

    def _consume(self, machine: Partition) -> bool:
        """One message of every split that has one: a block each."""
        splits = machine.consumable()
        for split in splits:
            rows = machine.contents.applied_rows
            with self.gate:
                begun = thread_time()  # of this thread alone: a machine that is busy does not make a row dearer
                instructions = machine.consume(split)
                took = thread_time() - begun
            self._pace.applied(machine.contents.applied_rows - rows, took)
            self._carry_out(instructions)
        return bool(splits)

    def _align(self, machine: Partition) -> bool:
        """An open cut goes before what is not read yet: its markers go out, and what lies before them is taken in, as far as it is here."""
        moved = False
        for _ in range(machine.window.messages + 1):
            self._carry_out(machine.mark())
            moved |= self._drain_inbox()
            if not machine.cut_is_open or not self._consume(machine):
                break
            moved = True
        return moved

    def _fill(self, machine: Partition) -> bool:
        if not machine.goals:
            return False
        with self.gate:
            moved = machine.fill_controls()
        wanted = machine.fills()
        for rows in self.intake.fill(machine.table, wanted, self.spec.block_rows, self.problems):
            with self.gate:
                machine.fill(rows)
            moved = True
        with self.gate:
            moved |= machine.fill_controls()
        return moved

    def _read(self, machine: Partition, wanted: Mapping[str, tuple[int, int | None]], timeout: float) -> int:
        """How many rows came (a stretch without any counts as one)."""
        count = 0
        for rows in self.intake.read(machine.table, wanted, self._pace.stretch, timeout, self.problems):
            self._carry_out(machine.read(rows, self.clock.monotonic(), self._pace.rows))
            self._pace.sent()
            count += rows.batch.num_rows or 1
        return count

    def _declare_idle(self, machine: Partition, now: float) -> None:
        """A split that is silent for long is asked aside whether it is at its end, no oftener than it may be silent."""
        for split in machine.idle(now):
            if now >= self._ask_end.get(split, 0.0):
                self._ask_end[split] = now + max(1.0, self.spec.idle_after)
                ask = partial(Intake.resolve_end, self.spec.plan.sources, machine.table, split)
                self._aside.do(split, ask, partial(self._at_end, split))

    def _at_end(self, split: str, end: int) -> None:
        machine = self._machine
        if split in machine.idle(self.clock.monotonic()) and machine.readings[split].at.offset >= end:
            self._carry_out(machine.declare_idle(split))

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        for each in instructions:
            match each:
                case Put():
                    if isinstance(each.message, Marker):
                        self._pace.begin_small()
                    if (port := self._outgoing.get(each.stream)) is not None:
                        port.put(each.stream, each.message)
                case Acknowledge():
                    if (port := self._incoming.get(each.stream)) is not None:
                        port.acknowledge(each.stream, each.count)
                case SendAttach():
                    location = self._machine.table.locations.get(each.reader)
                    port = self.surroundings.port(self, location)
                    self._incoming[each.attach.stream] = port
                    port.attach(each.reader, each.attach)
                case Close():
                    for ends in (self._incoming, self._outgoing):
                        if (port := ends.pop(each.stream, None)) is not None:
                            port.close(each.stream)
                case LoadRecord():
                    self._aside.do("store", partial(self.records.load, each.split), partial(self._record_loaded, each))
                case RecordFloor():
                    self._aside.do(
                        "store",
                        partial(self.records.append_floor, each.split, each.epoch, each.floor),
                        partial(self._floor_recorded, each.split, each.epoch, each.floor),
                    )
                case ResolveEnd():
                    self._aside.do(each.split, partial(self._resolve_end, each), partial(self._end_recorded, each))
                case CutTaken():
                    self._cut_taken(each)

    def _report(self) -> None:
        self.surroundings.report(self, urgent=True)

    # events

    @property
    def _machine(self) -> Partition:
        assert self.machine is not None
        return self.machine

    def _hear(self, table: Table) -> None:
        before = self._machine.table
        with self.gate:
            instructions = self._machine.hear(table)
        self._carry_out(instructions)
        if not self._machine.table.same_but_for_cuts(before):  # what becomes of a cut is reported when it has
            self._report()

    def _accept(self, attach: Attach, port: Port) -> None:
        instructions = self._machine.accept(attach)
        if any(isinstance(each, Put) for each in instructions):
            self._outgoing[attach.stream] = port
        else:
            port.close(attach.stream)
        self._carry_out(instructions)

    def _receive(self, stream: StreamId, message: Message) -> None:
        self._carry_out(self._machine.receive(stream, message))

    def _acknowledged(self, stream: StreamId, count: int) -> None:
        self._machine.acknowledged(stream, count)

    def _closed(self, stream: StreamId) -> None:
        self._incoming.pop(stream, None)
        self._outgoing.pop(stream, None)
        self._machine.stream_closed(stream, self.clock.monotonic())

    def _record_loaded(self, request: LoadRecord, record: SplitRecord | None) -> None:
        if record is None:
            raise InternalError("a split without a record", split=request.split)
        self._carry_out(self._machine.record_loaded(request.split, request.epoch, record, self.clock.monotonic()))

    def _floor_recorded(self, split: str, epoch: int, floor: Floor, _: SplitRecord) -> None:
        self._carry_out(self._machine.floor_recorded(split, epoch, floor, self.clock.monotonic()))

    def _resolve_end(self, request: ResolveEnd) -> SplitRecord:
        table = self._machine.table
        end = Intake.resolve_end(self.spec.plan.sources, table, request.split)
        return self.records.set_end(request.split, end, request.epoch)

    def _end_recorded(self, request: ResolveEnd, record: SplitRecord) -> None:
        assert record.end is not None
        self._carry_out(self._machine.end_recorded(request.split, request.epoch, record.end))

    def _cut_taken(self, taken: CutTaken) -> None:
        position = {split: list(place) for split, place in taken.frozen.marks.position.items()}
        self.surroundings.keep_cut(self, taken.cut, taken.frozen)
        self.cut = {"cut": taken.cut, "position": position}  # any report tells it from here on, so it is kept by now
        if self._machine.table.saves and self._commits.machine.saving:
            self._commits.cut_missed(taken.cut)
        elif self._machine.table.saves:
            self._save(taken.cut)  # nothing was applied since: the cut was taken in this very step
        self._report()

    # saving

    @property
    def _commits(self) -> Commits:
        assert self.commits is not None
        return self.commits

    @property
    def _contents(self) -> Contents:
        return self._machine.contents

    def _save_if_due(self, machine: Partition, now: float) -> None:
        committing = self._commits.machine
        ended = machine.ended and committing.end_saved
        if ended != (self.state == "ended"):
            self.state = "ended" if ended else "live"  # a split that joins brings an ended partition back
            self._report()
        # While a cut is to be saved, all partitions must be free to save it at once.
        if not committing.due(machine.ended, now) or (machine.cut_is_open and machine.table.saves):
            self._slowed = False
        elif not machine.ended and not self._slowed:
            self._slowed = True
            self._pace.begin_small()  # what is read from now on is applied after the freeze
        else:
            self._slowed = False
            self._save(None)

    def _save(self, cut: int | None) -> None:
        with self.gate:
            frozen = self._contents.freeze()
        self._commits.save(frozen, ended=frozen.marks.ended and self._machine.ended, cut=cut)

    def _close(self) -> None:
        self._stopping = True
        self.intake.close()
        for ends in (self._incoming, self._outgoing):
            for stream, port in ends.items():
                port.close(stream)
            ends.clear()
        self._aside.stop()
        if self.commits is not None:
            self.commits.close()
        if self._stopping and self.state in ("loading", "live", "ended"):
            self.state = "stopped" if self.state != "ended" else "ended"
