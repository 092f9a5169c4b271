"""The fastest reader: it guesses that a record looks like others of its log, and reads its values straight into columns.

Records of one producer mostly have the same names in the same order with the same spacing. So a few records are looked at closely
(`json_template`), and every record is then compared with what they have in common while its values are read (`kernels`). The
contract:

* What is taken is what `json_rows` accepts, and every value is the same. Which records are taken may change from block to block
  with what was learned; what a record means may not.
* What is not certain is left: a record that departs from all templates, and a value that is not in one of the forms below. That is
  no refusal: the other readers decide.
* Of each value is taken: null; text in UTF-8 without escapes and control characters; ``true`` and ``false``; whole numbers within
  the type's limits; decimals of at most 19 digits, as number or text, without an exponent and with no more decimals than the type
  takes; floats of at most 19 digits whose nearest float is beyond doubt; timestamps and dates in the forms of `kernels.times.timestamp`,
  or as whole numbers; durations as whole numbers. Values of unknown names, also within lists and objects, are read over, as JSON
  asks, whatever they are.
* Schemas with other types (lists, structs, times of day) are left to the other readers altogether.
* Where few records follow what was learned, or nothing can be learned, this reader stands aside, and looks again after ever more
  records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from flowstate.plan.kernel import compiling
from flowstate.source.json_rows import JsonRows
from flowstate.source.json_template import Template, template_of
from flowstate.source.kernels import records as kernel
from flowstate.source.records import Records
from flowstate.source.room import Room
from flowstate.source.values import Unreadable

MAX_BLOCK_BYTES = 1 << 28
MAX_TEMPLATES = 4
SAMPLES = 16

#: More departures than this are a reason to learn; with more than that the other readers are faster.
MANY, MOST = 1 / 8, 3 / 4

#: Records between two times that it learns, if that does not help; it stands aside for
#: `ASIDE` at least where records depart from all that it could learn.
FIRST_PERIOD, LAST_PERIOD, ASIDE = 4, 1 << 20, 4096
WINDOW = 1 << 16

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_WORD = (1 << 63) - 1


class _Kind(NamedTuple):
    """How values of a column are read: the fields of a step from `KIND` on, without the column."""

    kind: int
    width: int
    most: int = 0
    least: int = 0
    digits: int = 0


class JsonGuess:
    """Reads what it can of blocks of one scan's records. Keeps what it learned from block to block."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self._kinds = [_kind(each.type) for each in self._schema]
        self._eligible = 0 < len(set(schema.names)) == len(schema) and all(each is not None for each in self._kinds)
        self._columns = {name: index for index, name in enumerate(self._schema.names)}
        self._slow = JsonRows(self._schema) if self._eligible else None
        self._plan = _Plan([], self._kinds)
        self._uses: Counter[Template] = Counter()
        # Of the last records: how many there were, and how many departed.
        self._seen = self._departed = 0
        # So many more records before it may learn, and before it reads at all.
        self._wait = self._aside = 0
        self._period = FIRST_PERIOD

    def read(self, records: Records) -> tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.bool_]]] | None:
        """The rows of the records that follow a template, and which these are. None: none was tried, or none does."""
        if not self._eligible or not len(records):
            return None
        if self._aside > 0:
            self._aside -= len(records)
            return None
        size = int((records.ends - records.starts).sum())
        if size > MAX_BLOCK_BYTES:
            return None
        if not self._plan.templates and not self._learn(records, np.arange(len(records))):
            self._stand_aside()
            return None
        batch, taken = self._follow(records, size)
        if self._look(records, taken):
            batch, taken = self._follow(records, size)
        self._seen += len(records)
        self._departed += len(records) - batch.num_rows
        if self._seen >= ASIDE and self._departed > MOST * self._seen:
            self._period = max(self._period, ASIDE)
            self._stand_aside()
        elif self._seen > WINDOW:
            self._seen, self._departed = self._seen // 2, self._departed // 2
        return (batch, taken) if batch.num_rows else None

    def _look(self, records: Records, taken: np.ndarray[Any, Any]) -> bool:
        """Learn something new from those that depart, if they are many and it is time."""
        self._wait -= len(records)
        if self._wait > 0:
            return False
        departed = np.flatnonzero(~taken)
        many = self._departed + len(departed) > MANY * (self._seen + len(records))
        if many and not len(departed):
            return False  # with the next one that does
        self._period = min(self._period * 4, LAST_PERIOD) if many else max(self._period // 4, FIRST_PERIOD)
        self._wait = self._period
        if not many or not self._learn(records, departed):
            return False
        self._seen = self._departed = 0
        return True

    def _learn(self, records: Records, rows: np.ndarray[Any, Any]) -> bool:
        """Whether there is a new template among some of these records."""
        assert self._slow is not None
        samples = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(np.int64))]
        found: Counter[Template] = Counter()
        for row in samples.tolist():
            raw = records.raw(row)
            try:
                self._slow.read(raw)
            except Unreadable:
                continue
            template = template_of(raw, self._columns)
            if template is not None:
                found[template] += 1
        uses = Counter({each: self._uses[each] for each in self._plan.templates if self._uses[each]})
        for template, count in found.items():
            # Of many samples, what was seen once may never be seen again.
            if count >= max(1, len(samples) // 8):
                uses[template] += count * len(rows) // len(samples)
        best = [each for each, _ in uses.most_common(MAX_TEMPLATES)]
        learned = not set(best) <= set(self._plan.templates)
        if learned:
            self._plan = _Plan(best, self._kinds)
            self._uses.clear()
        return learned

    def _stand_aside(self) -> None:
        self._aside = self._period
        self._period = min(self._period * 4, LAST_PERIOD)
        self._plan = _Plan([], self._kinds)
        self._uses.clear()
        self._seen = self._departed = 0

    def _follow(self, records: Records, size: int) -> tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.bool_]]]:
        plan, count = self._plan, len(records)
        starts, ends = np.ascontiguousarray(records.starts), np.ascontiguousarray(records.ends)
        columns = [
            Room(each.type, count, kind.width, size) for each, kind in zip(self._schema, plan.kinds, strict=True)
        ]
        near = ends + kernel.SLACK > len(records.buffer)
        longest = int((ends - starts)[near].max(initial=0))
        taken = np.zeros(count, np.bool_)
        hits = np.zeros(len(plan.templates), np.int64)
        buffer = pa.py_buffer(records.buffer)
        rows = kernel.read_records(
            buffer.address,
            buffer.size,
            starts,
            ends,
            plan.steps,
            plan.begins,
            plan.words,
            np.array([each.addresses() for each in columns], np.int64),
            np.zeros(longest + kernel.SLACK, np.uint8),
            taken,
            hits,
        )
        for template, used in zip(plan.templates, hits.tolist(), strict=True):
            self._uses[template] += used
        arrays = [each.array(rows) for each in columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema), taken


class _Plan:
    """Templates as the kernel wants them."""

    def __init__(self, templates: Sequence[Template], kinds: Sequence[_Kind | None]) -> None:
        self.templates = templates
        self.kinds = [each for each in kinds if each is not None]
        steps: list[list[int]] = []
        begins = [0]
        words = bytearray()
        for template in templates:
            absent = [column for column in range(len(self.kinds)) if column not in template.columns]
            for literal, column in zip(template.literals, template.columns, strict=False):
                kind = _Kind(kernel.SKIPPED, 0) if column is None else self.kinds[column]
                steps.append(_step(words, literal, column or 0, kind))
            for column in absent:
                kind = _Kind(kernel.ABSENT, self.kinds[column].width)
                steps.append(_step(words, b"", column, kind))
            steps.append(_step(words, template.literals[-1], 0, _Kind(kernel.END, 0)))
            begins.append(len(steps))
        self.steps = np.array(steps, np.int64).reshape(-1, kernel.FIELDS)
        self.begins = np.array(begins, np.int64)
        self.words = np.frombuffer(bytes(words) + bytes(8), np.uint64)


def _step(words: bytearray, literal: bytes, column: int, kind: _Kind) -> list[int]:
    place = len(words) // 8
    words += literal + bytes(-len(literal) % 8)
    return [place, len(literal), kind.kind, column, *kind[1:]]


def _kind(kind: pa.DataType) -> _Kind | None:
    """How values of this type are read; None if they are not."""
    is_ = pa.types
    if is_.is_boolean(kind):
        return _Kind(kernel.BOOLEAN, 1)
    if is_.is_integer(kind):
        bits = kind.bit_width
        if is_.is_signed_integer(kind):
            return _Kind(kernel.INTEGER, bits // 8, (1 << bits - 1) - 1, _word(1 << bits - 1))
        return _Kind(kernel.INTEGER, bits // 8, _word((1 << bits) - 1), 0)
    if is_.is_float32(kind) or is_.is_float64(kind):
        return _Kind(kernel.FLOAT, kind.bit_width // 8)
    if is_.is_decimal128(kind) and kind.scale >= 0:
        return _Kind(kernel.DECIMAL, 16, kind.scale, kind.precision)
    if is_.is_timestamp(kind):
        return _Kind(kernel.TIMESTAMP, 8, _WORD, _WORD, _DIGITS[kind.unit])
    if is_.is_date32(kind):
        return _Kind(kernel.DATE, 4, (1 << 31) - 1, 1 << 31)
    if is_.is_duration(kind):
        return _Kind(kernel.INTEGER, 8, _WORD, _WORD)
    plain = (is_.is_string, is_.is_large_string, is_.is_binary, is_.is_large_binary)
    return _Kind(kernel.TEXT, 0) if any(each(kind) for each in plain) else None


def _word(number: int) -> int:
    """The int64 with the bits of a uint64."""
    return number - (1 << 64) if number > _WORD else number


def warm_up() -> None:
    """Compile the kernel, or load it from disk, so that no block waits for it."""
    with compiling():
        guess = JsonGuess(pa.schema([("a", pa.int64())]))
        raw = b'{"a":1}'
        numbers = np.array([0], np.int64)
        guess.read(Records(raw, numbers, numbers + len(raw), numbers))
