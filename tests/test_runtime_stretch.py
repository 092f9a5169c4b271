"""A stretch that is sent piece by piece: nothing is lost, nothing comes twice, and each piece says the newest event time before its end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.position import NEVER, OFFSET, Place
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, DEAD_LETTERS
from flowstate.runtime.prepare import Prepared
from flowstate.runtime.stretch import Stretch


def _letters(offsets: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{"source": "s", "split": "a", "offset": each} for each in offsets], DEAD_LETTER_SCHEMA
    )


def _offsets(rows: pa.RecordBatch) -> np.ndarray:
    return np.asarray(rows.column(OFFSET if OFFSET in rows.schema.names else "offset"))


@given(st.data())
@settings(deadline=None)
def test_pieces_are_the_whole(data: st.DataObject) -> None:
    records = data.draw(st.lists(st.integers(1, 4), max_size=40))  # rows of each
    offsets = np.repeat(np.arange(len(records)) * 3 + 10, records).astype(np.int64)
    to = Place(10 + 3 * len(records) + data.draw(st.integers(1, 5)), 2)
    times = np.array(data.draw(st.lists(st.integers(0, 100), min_size=len(offsets), max_size=len(offsets))), np.int64)
    newest = data.draw(st.integers(0, 100))
    running = np.maximum(np.maximum.accumulate(times), newest) if len(times) else times
    owner = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(offsets), max_size=len(offsets))), np.int64)
    rows = pa.record_batch({"time": times, OFFSET: offsets})
    dead = sorted(data.draw(st.sets(st.integers(10, to.offset - 1), max_size=5)))
    owners = {each: {"view": rows.filter(pa.array(owner == each))} for each in range(3) if (owner == each).any()}
    if dead:
        owners.setdefault(1, {})[DEAD_LETTERS] = _letters(dead)
    reached = int(running[-1]) if len(running) else newest
    stretch = Stretch(to, Prepared(reached, owners, offsets, running), owners)

    place, last, begun = Place(10, 2), False, newest
    found: dict[tuple[int, str], list[pa.RecordBatch]] = {}
    while not last:
        most = data.draw(st.none() | st.integers(1, 30))
        batches, header, last = stretch.next(place, newest, NEVER, most)
        assert header.since == place < header.to <= to and not header.rows
        assert (header.to == to) == last
        assert header.newest == max(begun, *times[offsets < header.to.offset].tolist(), NEVER)
        for number, each in batches.items():
            assert (each.since, each.to, each.newest, each.floor) == (place, header.to, header.newest, NEVER)
            for name, part in each.rows.items():
                column = _offsets(part)
                assert len(column) and place.offset <= column.min() and column.max() < header.to.offset
                assert most is None or len(column) <= most + most // 4 or len(set(column.tolist())) == 1
                found.setdefault((number, name), []).append(part)
        if most is not None and not last:  # for some owner, one more record would have been too many
            assert any(
                sum(_offsets(part) >= place.offset) - sum(_offsets(part) > header.to.offset) > most
                for tables in owners.values()
                for part in tables.values()
            )
        place, newest = header.to, header.newest
    assert {key: pa.concat_batches(each) for key, each in found.items()} == {
        (number, name): part for number, tables in owners.items() for name, part in tables.items()
    }
