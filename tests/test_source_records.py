"""What is asked of the event time of any row, against the plain way: row by row in Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.position import NEVER
from flowstate.plan.spec import ScanSpec
from flowstate.source.records import FIRST_TIME, LAST_TIME, complete

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
AHEAD = 1_000_000
EDGES = [
    each + near for each in (FIRST_TIME, LAST_TIME, 0, 2**62, -(2**62), 2**63 - 2, NEVER + 2) for near in (-1, 0, 1)
]


@given(st.sampled_from(sorted(UNITS)), st.booleans(), st.data())
@settings(deadline=None)
def test_event_times(unit: str, dated: bool, data: st.DataObject) -> None:
    scale = UNITS[unit]
    plain = st.integers(-5_000_000, 5_000_000)
    wild = st.none() | st.sampled_from(EDGES) | plain
    micros = data.draw(st.lists(plain, max_size=8) | st.lists(wild, max_size=8))
    raw = [None if each is None else each // scale for each in micros]
    times = st.lists(st.integers(-5_000_000, 5_000_000) | st.just(NEVER), min_size=len(raw), max_size=len(raw))
    recorded = np.array(data.draw(times), np.int64) if dated else None
    schema = pa.schema([("at", pa.timestamp(unit, "UTC"))])
    column = pa.array(raw, pa.int64()).view(schema.field(0).type)
    offsets = np.arange(7, 7 + len(raw))
    rows, dead = complete(
        ScanSpec("s", "kafka", schema, "at", max_ahead=AHEAD), "a", pa.RecordBatch.from_arrays([column], schema=schema),
        offsets, recorded, lambda row: str(row).encode(),
    )  # fmt: skip
    wanted, refused = [], []
    for place, value in enumerate(raw):
        time = None if value is None else value * scale
        late = None if recorded is None or recorded[place] == NEVER else int(recorded[place])
        if time is None:
            refused.append((place + 7, "missing or null"))
        elif not FIRST_TIME <= time <= LAST_TIME:
            refused.append((place + 7, "outside the years"))
        elif late is not None and time - late > AHEAD:
            refused.append((place + 7, "ahead of its record"))
        else:
            wanted.append((place + 7, time))
    assert list(zip(rows.column("__offset").to_pylist(), rows.column("__time").to_pylist(), strict=True)) == wanted
    found = list(zip(dead.column("offset").to_pylist(), dead.column("reason").to_pylist(), strict=True))
    assert [offset for offset, _ in found] == [offset for offset, _ in refused]
    assert all(part in reason for (_, reason), (_, part) in zip(found, refused, strict=True))
