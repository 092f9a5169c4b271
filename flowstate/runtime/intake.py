"""The source readers of a partition: one per source for the splits that it reads, one per source for gaps that it fills."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flowstate.clock import Clock
from flowstate.errors import FlowstateError, Unavailable
from flowstate.plan.spec import ScanSpec
from flowstate.runtime.pace import SHORTEST, pause
from flowstate.runtime.table import Table
from flowstate.source import make_source
from flowstate.source.base import Rows, SourceReader

RETRY = 1.0  # seconds before a source that failed is asked again


class Intake:
    """Trouble with a split is noted in `problems` and keeps no other split from being read."""

    def __init__(self, sources: Sequence[ScanSpec], clock: Clock) -> None:
        self.sources = [make_source(spec) for spec in sources]
        self.clock = clock
        self._readers: dict[tuple[int, bool], SourceReader] = {}
        self._at: dict[tuple[str, bool], int] = {}  # where each assigned split stands
        self._retry: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._silent: dict[str, tuple[float, float]] = {}  # since when, and when it was looked at last
        self.waited = False

    def read(
        self,
        table: Table,
        wanted: Mapping[str, tuple[int, int | None]],
        limit: int,
        timeout: float,
        problems: dict[str, str],
    ) -> Iterator[Rows]:
        """What is ready of the splits that this partition reads. Sources that hear of rows are waited for (`waited`: one was); of the
        others, a split that was silent for long is looked at now and then (`pace.pause`)."""
        self.waited = False
        return self._poll(table, wanted, limit, timeout, problems, gap=False)

    def fill(
        self, table: Table, wanted: Mapping[str, tuple[int, int | None]], limit: int, problems: dict[str, str]
    ) -> Iterator[Rows]:
        """The next piece of gaps."""
        return self._poll(table, wanted, limit, 0.0, problems, gap=True)

    def _poll(
        self,
        table: Table,
        wanted: Mapping[str, tuple[int, int | None]],
        limit: int,
        timeout: float,
        problems: dict[str, str],
        *,
        gap: bool,
    ) -> Iterator[Rows]:
        now = self.clock.monotonic()
        by_source: dict[int, dict[str, int | None]] = {}
        for split, (offset, stop) in wanted.items():
            if self._retry.get(split, 0.0) <= now:
                source = table.splits[split].source
                if self._assign(table, source, split, offset, gap, problems) and (gap or self._due(source, split, now)):
                    by_source.setdefault(source, {})[split] = stop
        for source, stops in by_source.items():
            reader = self._readers[source, gap]
            share = timeout / len(by_source) if reader.hears_rows else 0.0
            self.waited |= share > 0
            # After trouble each split is asked by itself, so that one bad split does not hide the others.
            groups = [{split: stop} for split, stop in stops.items()] if problems.keys() & stops.keys() else [stops]
            for group in groups:
                try:
                    for rows in reader.poll(group, max_rows=limit, timeout=share / len(groups)):
                        self._at[rows.split, gap] = rows.to
                        self._silent.pop(rows.split, None)
                        problems.pop(rows.split, None)
                        yield rows
                    self._tell(reader, group, problems)
                except FlowstateError as error:
                    self._trouble(reader, group, error, gap, problems)

    def _due(self, source: int, split: str, now: float) -> bool:
        """Whether to look at a split: a hundred logs that are silent would take the time of the one that is not."""
        if self._readers[source, False].hears_rows:
            return True
        since, looked = self._silent.get(split, (now, now))
        wait = pause(now - since)
        due = wait <= SHORTEST or now - looked >= wait
        self._silent[split] = since, now if due else looked
        return due

    def _tell(self, reader: SourceReader, splits: Mapping[str, object], problems: dict[str, str]) -> None:
        """What a reader waits for is a problem as long as it waits; the reader itself goes on."""
        for split in splits:
            if (told := reader.trouble(split)) is not None:
                problems[split] = self._told[split] = told
            elif (told := self._told.pop(split, None)) is not None and problems.get(split) == told:
                del problems[split]

    def _assign(self, table: Table, source: int, split: str, offset: int, gap: bool, problems: dict[str, str]) -> bool:
        if self._at.get((split, gap)) == offset:
            return True
        reader: SourceReader | None = None
        try:
            reader = self._readers.get((source, gap))
            if reader is None:
                reader = self._readers[source, gap] = self.sources[source].open()
            reader.assign(table.splits[split].info(split), offset)
        except FlowstateError as error:
            self._trouble(reader, [split], error, gap, problems)
            return False
        self._at[split, gap] = offset
        return True

    def _trouble(
        self,
        reader: SourceReader | None,
        splits: Sequence[str] | Mapping[str, object],
        error: FlowstateError,
        gap: bool,
        problems: dict[str, str],
    ) -> None:
        """Begin anew after a while: what the reader holds of these splits is not trusted any more."""
        wait = error.retry_after if isinstance(error, Unavailable) else RETRY
        for split in splits:
            problems[split] = f"{type(error).__name__}: {error}"
            self._at.pop((split, gap), None)
            self._retry[split] = self.clock.monotonic() + wait
            if reader is not None:
                reader.unassign(split)

    @staticmethod
    def resolve_end(sources: Sequence[ScanSpec], table: Table, split: str) -> int:
        """Where a split ends now, asked on another thread than the pump's."""
        reader = make_source(sources[table.splits[split].source]).open()
        try:
            reader.assign(table.splits[split].info(split), table.splits[split].start)
            return reader.end_offset(split)
        finally:
            reader.close()

    def known_end(self, source: int, split: str) -> int | None:
        """Where a split that is read here ends now, if its reader can tell that at a look. From any thread."""
        reader = self._readers.get((source, False))
        return None if reader is None else reader.known_end(split)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
