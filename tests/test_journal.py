"""What is told of partitions that were lost, were back, did not come up, or were given up."""

from __future__ import annotations

from flowstate.clock import ManualClock
from flowstate.runtime.coordinator import Member
from flowstate.runtime.journal import Journal


def told(journal: Journal) -> list[tuple[str, int | None]]:
    return [(each.kind, each.partition) for each in journal.happenings]


def test_the_first_start_of_a_partition_is_no_news() -> None:
    journal, member = Journal(ManualClock()), Member(0)
    for state in ("vacant", "claiming", "starting", "live", "ended"):
        member.state = state
        journal.look([member])
    assert told(journal) == []


def test_a_loss_and_the_recovery_are_told_once_with_the_seconds_between() -> None:
    clock = ManualClock(100.0)
    journal, member = Journal(clock), Member(1, state="live")
    journal.look([member])
    member.state, member.reason, member.failed_at = "claiming", "its worker was lost", 100.0
    journal.look([member])
    clock.advance(1.5)
    member.state = "starting"
    journal.look([member])
    member.state, member.reason = "live", None
    journal.look([member])
    assert [(each.kind, each.at, each.away) for each in journal.happenings] == [
        ("lost", 100, None),
        ("back", 101.5, 1.5),
    ]
    assert journal.happenings[1].words == "partition 1 is back after 1.5 s: its worker was lost"
    assert (journal.failures, journal.recoveries, journal.away) == ({1: 1}, {1: 1}, {1: 1.5})


def test_one_that_fails_for_the_same_reason_again_and_again_is_told_once_and_counted_each_time() -> None:
    clock = ManualClock()
    journal, member = Journal(clock), Member(0, state="live")
    journal.look([member])
    for failure in range(1, 5):
        member.state, member.reason, member.failed_at = "vacant", "the store is away", float(failure)
        journal.look([member])
        journal.look([member])
    member.state = "failed"
    journal.look([member])
    journal.look([member])
    assert told(journal) == [("lost", 0), ("given up", 0)]
    assert journal.failures == {0: 4}
    member.reason, member.failed_at = "its file is damaged", 9.0
    journal.look([member])
    assert journal.happenings[-1].words == "partition 0 did not come up: its file is damaged"


def test_one_that_never_came_up_says_why() -> None:
    journal = Journal(ManualClock())
    journal.look([Member(2, state="vacant", reason="the actor could not be created", failed_at=1.0)])
    assert journal.happenings[0].words == "partition 2 did not come up: the actor could not be created"
