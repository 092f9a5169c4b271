"""The supervisor as a pure machine: who is asked to do what, when workers, readers, answers and reports come and go in any order."""

from __future__ import annotations

from typing import Any

import pytest

from flowstate.plan.position import FOREVER, NEVER, Floor, Place
from flowstate.runtime.coordinator import (
    Claim,
    Coordinator,
    Create,
    CutDone,
    CutFailed,
    Discard,
    Instruction,
    Limits,
    RaiseReader,
    Tell,
)
from flowstate.runtime.table import ReaderOf, SplitEntry, Table

ENTRY = SplitEntry(0, "a file", 0, None, None, 0)
SPLITS = {"a": ENTRY, "b": ENTRY}


def only(kind: type, instructions: list[Instruction]) -> list[Any]:
    return [each for each in instructions if isinstance(each, kind)]


def report(state: str = "live", **more: Any) -> dict[str, Any]:
    return {"state": state, "position": {}, "reached": NEVER, "ended": False} | more


class Job:
    """A coordinator whose requests to the store and to workers succeed at once, unless a test wants otherwise."""

    def __init__(self, partitions: int = 2, workers: int = 2, **limits: Any) -> None:
        self.now, self.epochs, self.readers = 0.0, dict.fromkeys(range(partitions), 0), dict.fromkeys(SPLITS, 0)
        self.machine = Coordinator(partitions, SPLITS, limits=Limits(**limits))
        self.seen: list[Instruction] = []
        for number in range(workers):
            self.machine.workers[f"w{number}"] = f"grpc://w{number}"
        self.obey(self.machine.tick(self.now))

    def obey(self, instructions: list[Instruction]) -> list[Instruction]:
        self.seen += instructions
        for each in instructions:
            match each:
                case Claim():
                    self.epochs[each.partition] += 1
                    self.obey(self.machine.claimed(each.partition, self.epochs[each.partition], self.now))
                case Create():
                    self.report(each.partition)
                case RaiseReader():
                    self.readers[each.split] = self.readers.get(each.split, 0) + 1
                    self.obey(
                        self.machine.reader_raised(each.split, each.partition, self.readers[each.split], self.now)
                    )
        return instructions

    def report(self, partition: int, state: str = "live", epoch: int | None = None, **more: Any) -> list[Instruction]:
        wanted = self.machine.members[partition].epoch if epoch is None else epoch
        return self.obey(self.machine.reported(partition, wanted, report(state, **more), self.now))

    def pass_time(self, seconds: float) -> list[Instruction]:
        self.now += seconds
        return self.obey(self.machine.tick(self.now))

    @property
    def table(self) -> Table:
        return self.machine.table


def test_start_up() -> None:
    """Claimed before created, created before anybody reads, readers spread over the partitions."""
    machine = Coordinator(2, SPLITS)
    assert machine.tick(0.0) == []
    first = machine.worker_joined("w0", "grpc://w0", 0.0)
    assert first == [Claim(0), Claim(1)]
    claimed = machine.claimed(0, 4, 0.0)
    assert only(Create, claimed) == [Create(0, 4, "w0")] and only(Tell, claimed)
    assert machine.table.epochs == {0: 4} and machine.table.locations == {}
    assert not only(RaiseReader, machine.reported(0, 4, report(), 0.1))
    machine.claimed(1, 9, 0.1)
    raised = only(RaiseReader, machine.reported(1, 9, report(), 0.2))
    assert raised == [RaiseReader("a", 0), RaiseReader("b", 1)]
    for each in raised:
        assert only(Tell, machine.reader_raised(each.split, each.partition, 1, 0.3))
    assert machine.table.readers == {"a": ReaderOf(1, 0), "b": ReaderOf(1, 1)}
    assert machine.table.locations == {0: "grpc://w0", 1: "grpc://w0"}


def test_partitions_are_spread_over_workers() -> None:
    job = Job(partitions=4, workers=1)
    assert {each.worker for each in job.machine.members.values()} == {"w0"}
    machine = Coordinator(4, SPLITS)
    for number in range(2):
        machine.workers[f"w{number}"] = ""
    for each in only(Claim, machine.tick(0.0)):
        machine.claimed(each.partition, 1, 0.0)
    assert [member.worker for member in machine.members.values()] == ["w0", "w1", "w0", "w1"]


def test_a_lost_worker() -> None:
    """Its partition is claimed anew elsewhere and its splits go to one that lives; the other partition keeps its epoch."""
    job = Job()
    before = dict(job.table.epochs)
    lost = job.machine.members[0].worker
    out = job.obey(job.machine.worker_lost(str(lost), job.now))
    assert Claim(0) in out and not only(Discard, out)
    assert job.table.epochs == {0: before[0] + 1, 1: before[1]}
    assert job.machine.members[0].worker != lost
    assert {split: each.partition for split, each in job.table.readers.items()} == {"a": 1, "b": 1}
    assert job.table.readers["a"].epoch == 2 and job.table.readers["b"].epoch == 1


def test_without_workers_nothing_is_claimed_and_it_goes_on_when_one_comes() -> None:
    job = Job(workers=1)
    job.obey(job.machine.worker_lost("w0", job.now))
    assert job.table.readers == {} and job.table.locations == {}
    assert job.pass_time(1.0) == []
    job.obey(job.machine.worker_joined("w9", "grpc://w9", job.now))
    assert all(each.state == "live" and each.worker == "w9" for each in job.machine.members.values())
    assert job.table.readers.keys() == SPLITS.keys()


def test_a_worker_that_is_gone_when_the_epoch_is_there() -> None:
    machine = Coordinator(1, SPLITS)
    machine.worker_joined("w0", "", 0.0)
    machine.worker_lost("w0", 0.1)
    assert machine.claimed(0, 1, 0.2) == []
    assert machine.worker_joined("w1", "", 0.3) == [Claim(0)]


def test_a_split_is_moved() -> None:
    job = Job()
    job.obey(job.machine.move("a", job.now))
    assert job.table.readers["a"].epoch == 2
    assert job.machine.move("nothing", job.now) == []


def test_repeated_failures_back_off_and_end_visibly() -> None:
    job = Job(failures=3, backoff=1.0)
    waits = []
    for _ in range(3):
        job.report(0, "failed", reason="no disk")
        began = job.now
        while job.machine.members[0].state == "vacant":
            job.pass_time(0.25)
        waits.append(job.now - began)
    assert waits == [0.0, 2.0, 4.0]
    job.report(0, "failed", reason="no disk")
    member = job.machine.members[0]
    assert (member.state, member.reason) == ("failed", "no disk")
    assert not only(Claim, job.pass_time(3600.0))
    assert {each.partition for each in job.table.readers.values()} == {1}


def test_a_long_life_forgives_failures() -> None:
    job = Job(failures=1, backoff=0.0)
    for _ in range(4):
        job.report(0, "failed")
        assert job.machine.members[0].state == "live"
        job.now += 100


def test_a_final_failure_is_not_tried_again() -> None:
    job = Job()
    job.report(1, "failed", final=True, reason="the flow must change")
    assert job.machine.members[1].state == "failed"
    assert not only(Claim, job.pass_time(1000.0))


def test_an_actor_that_cannot_be_created_or_does_not_come_up() -> None:
    machine = Coordinator(1, {}, limits=Limits(start=60.0, backoff=0.0))
    machine.worker_joined("w0", "", 0.0)
    machine.claimed(0, 1, 0.0)
    out = machine.create_failed(0, 1, "no memory", 1.0)
    assert Discard(0, 1, "w0") in out and Claim(0) in out
    machine.claimed(0, 2, 1.0)
    assert machine.create_failed(0, 1, "an old one", 2.0) == []
    assert not only(Discard, machine.tick(60.9))
    assert Discard(0, 2, "w0") in machine.tick(61.5)
    assert machine.members[0].reason == "it did not come up in time"


def test_stale_reports_are_ignored() -> None:
    job = Job()
    version, epoch = job.table.version, job.machine.members[0].epoch
    assert job.report(0, "failed", epoch=epoch - 1) == []
    assert job.report(0, "fenced", epoch=epoch + 1) == []
    assert job.table.version == version and job.machine.members[0].state == "live"
    machine = Coordinator(1, {})
    assert machine.reported(0, 0, report(), 0.0) == []


def test_cut() -> None:
    job = Job()
    cut = job.machine.open_cut(job.now, saves=True)
    assert cut == 1 and job.table.cut == 1 and job.table.closed == 0 and job.table.saves
    assert job.machine.open_cut(job.now, saves=False) is None
    taken = {"cut": 1, "position": {"a": [5, 0], "b": [7, 1]}}
    assert not only(CutDone, job.report(0, cut=taken))
    assert not only(CutDone, job.report(0, cut=taken))
    out = job.report(1, cut=taken)
    assert only(CutDone, out) == [CutDone(1, {"a": Place(5, 0), "b": Place(7, 1)})]
    assert job.table.closed == 1
    assert not only(CutDone, job.report(0, cut=taken, cut_saved={"cut": 1, "version": 12}))
    (done,) = only(CutDone, job.report(1, cut=taken, cut_saved={"cut": 1, "version": 7}))
    assert done.saved and done.versions == {0: 12, 1: 7}
    assert job.machine.open_cut(job.now, saves=False) == 2


def test_a_cut_at_different_positions_is_refused() -> None:
    job = Job()
    job.machine.open_cut(job.now, saves=False)
    job.report(0, cut={"cut": 1, "position": {"a": [5, 0], "b": [7, 0]}})
    out = job.report(1, cut={"cut": 1, "position": {"a": [5, 0], "b": [7, 1]}})
    assert only(CutFailed, out) and not only(CutDone, out)


def test_a_cut_that_is_not_aligned_in_time_is_closed() -> None:
    job = Job(cut=5.0)
    job.machine.open_cut(job.now, saves=False)
    assert not only(CutFailed, job.pass_time(4.9))
    out = job.pass_time(0.2)
    assert only(CutFailed, out) and only(Tell, out)
    assert job.table.closed == 1
    assert not only(
        CutDone, job.report(0, cut={"cut": 1, "position": {}}) + job.report(1, cut={"cut": 1, "position": {}})
    )


@pytest.mark.parametrize("change", ["worker", "move", "failed", "found", "drain"])
def test_any_change_closes_the_cut(change: str) -> None:
    """C3: a marker of another reader, or of another incarnation, would be at another place."""
    job = Job()
    job.machine.open_cut(job.now, saves=False)
    taken = {"cut": 1, "position": {}}
    job.report(0, cut=taken)
    match change:
        case "worker":
            out = job.obey(job.machine.worker_lost(str(job.machine.members[0].worker), job.now))
        case "move":
            out = job.obey(job.machine.move("b", job.now))
        case "failed":
            out = job.report(0, "failed")
        case "found":
            out = job.obey(job.machine.splits_found({"c": ENTRY}, job.now))
        case _:
            out = job.obey(job.machine.drain())
    assert len(only(CutFailed, out)) == 1
    assert job.table.closed == job.table.cut == 1
    assert not only(CutDone, job.report(0, cut=taken) + job.report(1, cut=taken))
    assert job.machine.open_cut(job.now, saves=False) == 2


def test_a_split_that_joins_begins_above_every_watermark_that_was_acted_upon() -> None:
    job = Job()
    job.obey(job.machine.splits_found({"c": SplitEntry(0, "", 40, None, None, 0)}, job.now))
    assert "c" in job.table.splits and "c" not in job.table.readers
    assert not only(RaiseReader, job.pass_time(1.0))
    with_c = {"a": [1, 0], "b": [1, 0], "c": [40, 0]}
    assert not only(RaiseReader, job.report(0, position=with_c, reached=500))
    assert not only(RaiseReader, job.report(1, position={"a": [1, 0], "b": [1, 0]}, reached=900))
    (raised,) = only(RaiseReader, job.report(1, position=with_c, reached=800))
    assert raised.split == "c" and raised.floor == Floor(40, 800)
    assert job.table.readers["c"].epoch == 1


def test_a_joining_split_waits_for_the_incarnation_that_comes_back() -> None:
    job = Job()
    job.obey(job.machine.splits_found({"c": ENTRY}, job.now))
    with_c = {"a": [1, 0], "b": [1, 0], "c": [0, 0]}
    job.report(0, position=with_c, reached=500)
    job.obey(job.machine.worker_lost(str(job.machine.members[0].worker), job.now))
    assert "c" not in job.table.readers
    assert not only(RaiseReader, job.report(1, position=with_c, reached=400))
    (raised,) = only(RaiseReader, job.report(0, position=with_c, reached=FOREVER))
    assert raised.floor == Floor(0, FOREVER)


def test_a_split_that_joins_before_any_watermark_needs_no_floor() -> None:
    job = Job(partitions=1)
    job.obey(job.machine.splits_found({"c": ENTRY}, job.now))
    assert only(RaiseReader, job.report(0, position={"c": [0, 0]}, reached=NEVER)) == [RaiseReader("c", 0, None)]


def joining() -> tuple[Coordinator, RaiseReader]:
    """Two partitions; split c is to be read, and nobody has answered."""
    job = Job()
    job.obey(job.machine.splits_found({"c": ENTRY}, job.now))
    machine = job.machine
    machine.reported(0, 1, report(position={"c": [0, 0]}, reached=500), 1.0)
    (asked,) = only(RaiseReader, machine.reported(1, 1, report(position={"c": [0, 0]}, reached=600), 1.0))
    return machine, asked


def test_the_first_floor_survives_its_reader() -> None:
    """The chosen partition is lost before it is known whether the floor was recorded: whoever is asked next carries the same floor."""
    machine, asked = joining()
    out = machine.worker_lost(str(machine.members[asked.partition].worker), 2.0)
    again = [each for each in only(RaiseReader, out + machine.tick(3.0)) if each.split == "c"]
    assert [each.floor for each in again] == [Floor(0, 600)]
    assert again[0].partition != asked.partition
    assert machine.raise_failed("c", 3.5) == []
    (third,) = [each for each in only(RaiseReader, machine.tick(4.0)) if each.split == "c"]
    assert third.floor == Floor(0, 600)
    machine.reader_raised("c", third.partition, 3, 5.0)
    assert machine.table.readers["c"] == ReaderOf(3, third.partition)
    assert [each.floor for each in only(RaiseReader, machine.move("c", 6.0))] == [None]


def test_a_request_whose_answer_was_lost_may_have_overtaken_the_reader() -> None:
    """Found with seed 442: the reader's record had a greater epoch than the table, and nobody knew."""
    machine, asked = joining()
    other = 1 - asked.partition
    machine.worker_lost(str(machine.members[asked.partition].worker), 2.0)
    machine.reader_raised("c", other, 1, 3.0)
    assert machine.table.readers["c"] == ReaderOf(1, other)
    again = machine.raise_failed("c", 4.0)  # of the first request: it may have landed above the second
    assert "c" not in machine.table.readers and [each.split for each in only(RaiseReader, again)] == ["c"]


def test_answers_about_readers_in_the_other_order() -> None:
    """Only the greatest epoch can read, whoever asked for it."""
    machine, asked = joining()
    other = 1 - asked.partition
    machine.worker_lost(str(machine.members[asked.partition].worker), 2.0)
    assert machine.raising["c"] == other
    machine.reader_raised("c", asked.partition, 2, 3.0)  # the first request landed last
    assert "c" not in machine.table.readers
    again = machine.reader_raised("c", other, 1, 3.0)
    assert "c" not in machine.table.readers and [each.split for each in only(RaiseReader, again)] == ["c"]
    machine.reader_raised("c", other, 3, 4.0)
    assert machine.table.readers["c"] == ReaderOf(3, other)
    late = machine.reader_raised("c", asked.partition, 4, 5.0)
    assert "c" not in machine.table.readers and [each.split for each in only(RaiseReader, late)] == ["c"]


def test_found_again_is_not_new_and_a_new_path_is_told() -> None:
    job = Job()
    version = job.table.version
    assert job.machine.splits_found(SPLITS, job.now) == [] and job.table.version == version
    moved = SplitEntry(0, "renamed", 0, None, {"path": "new"}, 0)
    assert only(Tell, job.machine.splits_found({"a": moved}, job.now))
    assert job.table.splits["a"].hint == {"path": "new"} and job.table.splits["a"].label == "renamed"
    assert job.table.readers["a"].epoch == 1


def test_finished() -> None:
    job = Job()
    at_end = {"a": [9, 0], "b": [9, 0]}
    job.report(0, "ended", position=at_end, ended=True)
    assert not job.machine.finished
    job.report(1, "ended", position=at_end, ended=True)
    assert job.machine.finished
    job.obey(job.machine.splits_found({"c": ENTRY}, job.now))
    assert not job.machine.finished
    for number in (0, 1):
        job.report(number, position={**at_end, "c": [0, 0]}, reached=FOREVER)
    assert job.machine.members[0].state == "live" and "c" in job.table.readers


def test_drain_and_stop_are_told_once() -> None:
    job = Job()
    assert only(Tell, job.machine.drain()) and job.machine.drain() == []
    assert only(Tell, job.machine.stop()) and job.machine.stop() == []
    assert job.table.draining and job.table.stopping


def test_a_table_as_plain_data() -> None:
    job = Job()
    assert Table.load(job.table.dump()) == job.table


def test_output_beyond_the_quota_pauses_reading_until_a_good_part_is_gone() -> None:
    """Whatever else changes meanwhile. An open cut goes on, since what is under way is applied."""
    job = Job()
    job.machine.spill = 1000
    job.machine.open_cut(job.now, saves=False)
    assert not only(Tell, job.report(0, spilled=600)) and not job.table.paused
    assert not only(Tell, job.report(1, spilled=400))
    out = job.report(1, spilled=401)
    assert only(Tell, out) and not only(CutFailed, out) and job.table.paused
    assert job.machine.spilled == 1001 and job.machine.cut_opened is not None
    job.obey(job.machine.worker_lost(str(job.machine.members[0].worker), job.now))
    assert not only(Tell, job.report(0, spilled=500)) and job.table.paused
    assert not only(Tell, job.report(1, spilled=300)) and job.table.paused
    assert only(Tell, job.report(1, spilled=299)) and not job.table.paused


def test_output_of_a_partition_that_was_given_up_pauses_nobody() -> None:
    job = Job(failures=0)
    job.machine.spill = 1000
    job.report(0, spilled=5000)
    assert job.table.paused
    job.report(0, "failed", reason="no disk")
    job.report(1, spilled=0)
    assert not job.table.paused and job.machine.given_up == {0: "no disk"}


def test_a_final_failure_leaves_its_splits_to_others() -> None:
    job = Job()
    assert job.table.readers["b"].partition == 1
    out = job.report(1, "failed", final=True, reason="the flow must change")
    assert only(Tell, out) and [each.split for each in only(RaiseReader, out)] == ["b"]
    assert {each.partition for each in job.table.readers.values()} == {0} and 1 not in job.table.locations


def test_splits_of_a_reader_that_died_are_read_on_although_others_are_not_up_yet() -> None:
    """Only at the very first are all partitions waited for."""
    machine = Coordinator(3, SPLITS)
    for number in range(3):
        machine.worker_joined(f"w{number}", "", 0.0)
    for number in range(3):
        machine.claimed(number, 1, 0.0)
    for number in (0, 1):
        assert not only(RaiseReader, machine.reported(number, 1, report(), 0.0))
    asked = only(RaiseReader, machine.reported(2, 1, report(), 0.0))
    for each in asked:
        machine.reader_raised(each.split, each.partition, 1, 0.0)
    machine.members[2].state, machine.members[2].failures = "starting", 0  # up, and then slow again
    readers = {each.split: each.partition for each in asked}
    out = machine.worker_lost("w0", 1.0)
    again = only(RaiseReader, out)
    assert {each.split for each in again} == {split for split, number in readers.items() if number == 0}
    assert {each.partition for each in again} == {1}


def test_a_store_that_takes_no_claim_is_not_asked_ten_times_a_second() -> None:
    machine = Coordinator(1, SPLITS, limits=Limits(backoff=0.5))
    assert machine.worker_joined("w0", "", 0.0) == [Claim(0)]
    machine.claim_failed(0, "the store is away", 1.0)
    assert machine.tick(1.4) == [] and machine.members[0].reason == "the store is away"
    assert machine.tick(1.6) == [Claim(0)]


def test_a_cut_for_readers_leaves_one_that_is_still_being_saved_alone() -> None:
    """However many readers ask for cuts, one after the other, saving goes on beside them."""
    job = Job()
    assert job.machine.open_cut(job.now, saves=True) == 1
    for number in range(2):
        job.report(number, cut={"cut": 1, "position": {"a": [5, 0], "b": [7, 1]}})
    for cut in range(2, 5):
        assert job.machine.open_cut(job.now, saves=False) == cut
        taken = {"cut": cut, "position": {"a": [5 + cut, 0], "b": [7, 1]}}
        out = [each for number in range(2) for each in job.report(number, cut=taken)]
        assert only(CutDone, out) == [CutDone(cut, {"a": Place(5 + cut, 0), "b": Place(7, 1)})]
    job.report(0, cut=taken, cut_saved={"cut": 1, "version": 3})
    (done,) = only(CutDone, job.report(1, cut=taken, cut_saved={"cut": 1, "version": 4}))
    assert done == CutDone(1, {"a": Place(5, 0), "b": Place(7, 1)}, True, {0: 3, 1: 4})
