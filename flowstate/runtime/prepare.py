"""From rows of a split to what each owner is sent: watermark before each row, expressions, late rows, dead letters, routing.

A pure function of the log: how rows are cut into stretches, and who does this, cannot change what a row becomes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from flowstate.exchange.route import Router
from flowstate.plan.event_times import note_watermarks
from flowstate.plan.position import OFFSET, TIME, WATERMARK, later
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, DEAD_LETTERS, JobPlan, TableSpec
from flowstate.source.base import Rows


@dataclass(frozen=True)
class Prepared:
    """Owner -> table -> rows, and the newest event time after them. `offsets` are those of all rows that were read, `running` the newest
    event time of the split after each of them (None without event times); both ascend."""

    newest: int
    owners: Mapping[int, Mapping[str, pa.RecordBatch]]
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    running: np.ndarray | None = None


class Preparer:
    """Knows the plan and the router."""

    def __init__(self, plan: JobPlan, router: Router) -> None:
        self.plan, self.router = plan, router
        self._homes: dict[str, int] = {}
        self.lateness = [each.lateness for each in plan.sources]
        self.routes = [
            [route for route in plan.routes if route.source == number] for number in range(len(plan.sources))
        ]

    def skips_lost(self, source: int) -> bool:
        """Whether offsets that the log lost are passed over, so that two who read a stretch at different times may read different rows."""
        return self.plan.sources[source].options.get("lost") == "skip"

    def lost(self, source: int, rows: Rows) -> pa.RecordBatch | None:
        """The letter that stands for `rows`, if they are a stretch that the log lost."""
        stands = self.skips_lost(source) and not rows.batch.num_rows and rows.dead.num_rows == 1
        return rows.dead if stands and not rows.dead.column("raw")[0].is_valid else None

    def home(self, split: str) -> int:
        """The partition that gets the late rows and dead letters of a split."""
        if split not in self._homes:
            self._homes[split] = self.router.owner_of_split(split)
        return self._homes[split]

    def prepare(self, source: int, rows: Rows, newest: int, floor: int) -> Prepared:
        """`newest` and `floor` hold before the rows. Owners without rows are not in the result."""
        owners: dict[int, dict[str, pa.RecordBatch]] = {}
        home = self.home(rows.split)
        dead = [rows.dead] if rows.dead.num_rows else []
        offsets, running = rows.batch.column(OFFSET).to_numpy(), None
        if rows.batch.num_rows:
            batch, newest, running = self._with_watermark(source, rows.batch, newest, floor)
            for route in self.routes[source]:
                prepared = route.prepare(batch, rows.split)
                spec = self.plan.tables[route.table]
                if isinstance(spec, TableSpec):
                    for owner, part in self.router.split(prepared.rows, spec.routing_keys).items():
                        owners.setdefault(owner, {})[route.table] = part
                elif prepared.rows.num_rows:
                    owners.setdefault(home, {})[route.table] = prepared.rows
                if prepared.late is not None and prepared.late.num_rows and route.late_table:
                    owners.setdefault(home, {})[route.late_table] = prepared.late
                if prepared.failed.num_rows:
                    dead.append(self._failed(source, rows, prepared.failed, route.table))
        if dead:
            letters = pa.Table.from_batches(dead).combine_chunks().sort_by("offset")
            owners.setdefault(home, {})[DEAD_LETTERS] = letters.to_batches()[0]
        return Prepared(newest, owners, offsets, running)

    def _with_watermark(
        self, source: int, batch: pa.RecordBatch, newest: int, floor: int
    ) -> tuple[pa.RecordBatch, int, np.ndarray | None]:
        """The batch with `__watermark`: of the row's own split, just before the row."""
        if TIME not in batch.schema.names:
            constant = np.full(batch.num_rows, max(later(newest, 0), floor), np.int64)
            return batch.append_column(WATERMARK, pa.array(constant)), newest, None
        times = batch.column(TIME).to_numpy(zero_copy_only=True)
        running, marks = np.empty(len(times), np.int64), np.empty(len(times), np.int64)
        note_watermarks(np.ascontiguousarray(times), newest, self.lateness[source], floor, running, marks)
        return batch.append_column(WATERMARK, pa.array(marks)), int(running[-1]), running

    def _failed(self, source: int, rows: Rows, failed: pa.RecordBatch, table: str) -> pa.RecordBatch:
        """Rows whose expressions failed, as dead letters. What is left of the record is its decoded columns, as JSON."""
        offsets = rows.batch.column(OFFSET).to_numpy()
        visible = [name for name in rows.batch.schema.names if not name.startswith("__")]
        letters = []
        for offset, reason in zip(*(column.to_pylist() for column in failed.columns), strict=True):
            begin, end = np.searchsorted(offsets, offset), np.searchsorted(offsets, offset, "right")
            record = rows.batch.slice(int(begin), int(end - begin)).select(visible).to_pylist()
            letters.append(
                {
                    "source": self.plan.sources[source].name,
                    "split": rows.split,
                    "offset": offset,
                    "view": table,
                    "reason": reason,
                    "raw": json.dumps(
                        record[0] if len(record) == 1 else record, default=str, ensure_ascii=False
                    ).encode(),
                    "recorded": None,
                }
            )
        return pa.RecordBatch.from_pylist(letters, schema=DEAD_LETTER_SCHEMA)
