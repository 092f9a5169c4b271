"""How many rows a block has, against a model of what applying them costs."""

from __future__ import annotations

import numpy as np
import pytest

from flowstate.runtime.pace import BLOCK, LEAST_ROWS, Looks, Pace

MOST = 16384


class Modelled:
    """Rows of random keys in `chunks` chunks, each of which is copied when it is first touched after a freeze."""

    def __init__(self, chunks: int, row: float, copy: float) -> None:
        self.chunks, self.row, self.copy = chunks, row, copy
        self.chance = np.random.default_rng(chunks)
        self.held = np.zeros(chunks, bool)

    def apply(self, rows: int) -> tuple[float, int]:
        """Seconds that a block takes, and how many chunks it copied."""
        before = int(self.held.sum())
        self.held[self.chance.integers(0, self.chunks, rows)] = False
        copies = before - int(self.held.sum())
        return 1e-4 + rows * self.row + copies * self.copy, copies


def steps(pace: Pace, model: Modelled, blocks: int) -> list[tuple[int, float, int]]:
    """(rows, seconds, copies) of blocks that are sent and applied one after another."""
    done = []
    for _ in range(blocks):
        rows = pace.rows
        pace.sent()
        seconds, copies = model.apply(rows)
        pace.applied(rows, seconds)
        done.append((rows, seconds, copies))
    return done


@pytest.mark.parametrize(
    ("chunks", "copy"), [(1, 4e-5), (1, 1e-3), (72, 4e-5), (72, 2e-4), (72, 1e-3), (700, 4e-5), (4000, 4e-5)]
)
def test_no_block_after_a_freeze_waits_long_for_copies(chunks: int, copy: float) -> None:
    pace, model = Pace(MOST, 1), Modelled(chunks, 1e-7, copy)
    usual = steps(pace, model, 100)[-1][0]
    assert usual * model.row == pytest.approx(BLOCK, rel=0.2)
    for _ in range(3):
        model.held[:] = True
        pace.begin_small()
        done = steps(pace, model, 60 + int(3 * chunks * copy / BLOCK))
        assert max(seconds for _, seconds, _ in done) < max(2 * BLOCK, 5 * copy) + 2e-4 + usual * model.row
        # As soon as little is left to copy, blocks are as large as before.
        last = max(place for place, (_, _, copies) in enumerate(done) if copies)
        assert done[last + 14][0] == pytest.approx(usual, rel=0.1)
        assert sum(copies for _, _, copies in done) == chunks
        assert last < 40 + 2.5 * chunks * copy / BLOCK


def test_rows_that_are_dear_by_themselves_are_not_taken_for_copying() -> None:
    """Blocks come back to their least size though one takes longer than it should, also if that was not known before the freeze."""
    pace, model = Pace(MOST, 1), Modelled(10, 5e-6, 1e-4)
    pace.begin_small()
    steps(pace, model, 400)
    assert pace.rows == LEAST_ROWS
    model.held[:] = True
    pace.begin_small()
    assert steps(pace, model, 40)[-1][0] == LEAST_ROWS


def test_a_stall_of_the_machine_costs_little() -> None:
    pace, model = Pace(MOST, 1), Modelled(10, 1e-7, 0.0)
    usual = steps(pace, model, 100)[-1][0]
    pace.begin_small()
    pace.sent()
    pace.applied(pace.rows, 5.0)
    assert pace.rows == 1
    assert steps(pace, model, 20)[-1][0] == pytest.approx(usual, rel=0.1)


@pytest.mark.parametrize("row", [5e-8, 1e-7, 1e-6])
def test_the_first_blocks_are_not_long_however_dear_rows_are(row: float) -> None:
    done = steps(Pace(MOST, 1), Modelled(1, row, 0.0), 60)
    assert max(seconds for _, seconds, _ in done) < max(2 * BLOCK, LEAST_ROWS * row) + 2e-4
    assert done[-1][0] == pytest.approx(max(LEAST_ROWS, min(MOST, BLOCK / row)), rel=0.35)


@pytest.mark.parametrize("rate", [500, 20_000, 50_000, 400_000, 2_000_000])
def test_rows_that_trickle_take_half_of_a_core_and_wait_for_few_rounds(rate: int) -> None:
    """A round takes 1.5 ms of the thread and 0.3 us a row."""
    once = 1.5e-3
    looks, now, spent, waiting_since, rounds = Looks(), 0.0, 0.0, 0.0, []
    while now < 2.0:
        if rest := looks.rest(now, spent):
            now += rest
            assert not looks.rest(now, spent)
        rows = int(rate * now) - int(rate * waiting_since)
        cost = once + rows * 3e-7 if rows else 2e-5
        looks.looked(rows, spent)
        rounds.append((rows, now + cost - waiting_since))
        waiting_since, now, spent = now, now + cost, spent + cost
    busy = spent / now
    longest = max(took for rows, took in rounds if rows)
    if rate <= 400_000:
        assert busy <= 0.55
        assert longest <= 3.2 * (once + LEAST_ROWS * 3e-7)
    else:
        assert busy > 0.95  # many rows at once: no rest
