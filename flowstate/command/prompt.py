"""``flowstate sql WHERE`` without a query: a prompt. Each query is computed as a service computes it; below its rows stands how long that
took, and how fresh they are."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType

import pyarrow as pa

from flowstate.clock import SystemClock
from flowstate.command.asking import saved_parts
from flowstate.command.completion import COMMANDS, MODES, Words
from flowstate.command.editor import Editor
from flowstate.command.query import tables_of
from flowstate.command.rows import Lines, cells, is_number, table_text, width, write, write_rows
from flowstate.command.statements import locate, split
from flowstate.command.terminal import Interrupted, die_of
from flowstate.errors import FlowstateError, InvalidFlow, did_you_mean
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness
from flowstate_flight.client import FlightReader
from flowstate_sql.served import ServedSql
from flowstate_sql.system import SCHEMAS

#: Rows that are shown of an answer; more are for `flowstate sql WHERE QUERY`.
SHOWN = 1000
#: What a column that is cut keeps.
LEAST = 8


class Prompt:
    """Over what `reader` reads and `sql` computes. For the main thread."""

    def __init__(self, reader: FlightReader, sql: ServedSql, fresh: Freshness, mode: str = "text") -> None:
        self._reader, self._sql, self._fresh, self._mode = reader, sql, fresh, mode
        self._clock = SystemClock()
        self._cancelled = threading.Event()

    def serve(self, note: str = "") -> int:
        """Until Ctrl-D or ``.quit``."""
        job = self._reader.directory().job
        editor = Editor(job, Words(tables_of(self._reader)))
        _say(f"job {job!r}{note}: views {', '.join(self._reader.views())}")
        _say("a query ends with ; - .help says more, Ctrl-D leaves", dim=True)
        signal.signal(signal.SIGINT, self._interrupted)
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, _ended)
        try:
            while True:
                self._cancelled.clear()  # what comes from here on means what is typed now
                try:
                    typed = editor.read()
                except KeyboardInterrupt:
                    continue  # what was typed is thrown away
                if not self._take(typed.strip()):
                    return 0
        except EOFError:
            return 0
        except Interrupted as interrupted:
            die_of(interrupted.number)
            return 1

    def _take(self, typed: str) -> bool:
        """Do what was typed; whether to go on."""
        if typed.startswith("."):
            return self._command(*typed.rstrip(";").split())
        for statement in split(typed)[0]:
            if not self._run(statement):
                break
        return True

    # queries

    def _run(self, query: str) -> bool:
        """Whether it went well."""
        begun = self._clock.monotonic()
        try:
            running = self._sql.run(query, fresh=self._fresh, cancelled=self._cancelled.is_set)
            try:
                count, more = self._show(running.schema, running.batches())
            finally:
                running.cancel()  # what is not shown is not computed
            took = self._clock.monotonic() - begun
            rows = f"{count:,} row{'s' * (count != 1)}" + (", and there are more" if more else "")
            _say(f"{rows}, {_time(took)}{_fresh(running.answers)}", dim=True)
            return True
        except FlowstateError as error:
            if self._cancelled.is_set():
                _say(f"\ncancelled after {_time(self._clock.monotonic() - begun)}", dim=True)
            else:
                self._explain(query, error)
            return False

    def _show(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> tuple[int, bool]:
        """How many rows were shown, and whether there are more."""
        held: list[pa.RecordBatch] = []
        count, more = 0, False
        for batch in batches:
            if count + batch.num_rows > SHOWN:
                batch, more = batch.slice(0, SHOWN - count), True
            held.append(batch)
            count += batch.num_rows
            if more:
                break
        if self._mode in ("json", "csv"):
            write_rows(self._mode, schema, held)
        elif self._mode == "line":
            write(_one_below_the_other(schema, held).encode(errors="replace"))
        else:
            _side_by_side(schema, held)
        return count, more

    def _explain(self, query: str, error: FlowstateError) -> None:
        """One sentence, and where in the query it is about."""
        message = str(error)
        if isinstance(error, InvalidFlow):
            mistake = locate(query, error.message, tables_of(self._reader))
            if mistake is not None:
                _say("\n".join(mistake.shown()))
            message = message.partition(" LINE ")[0]
        _say(message)

    # commands

    def _command(self, name: str, *arguments: str) -> bool:
        """Whether to go on."""
        match name:
            case ".quit" | ".exit":
                return False
            case ".help":
                table_text(["command", ""], [*COMMANDS.items()])
                _say(
                    "Queries are DuckDB's SELECT, over views and system tables (flowstate_partitions, ...), and end with ;"
                )
                _say("Tab completes; Ctrl-C throws away what is typed, or cancels the query that runs.")
            case ".views":
                self._views()
            case ".schema" if arguments:
                try:
                    self._schema(self._info(arguments[0]))
                except FlowstateError as error:
                    _say(str(error))
            case ".schema":
                _say("say of which view: .schema VIEW")
            case ".mode" if arguments and arguments[0] in MODES:
                self._mode = arguments[0]
            case ".mode":
                _say(f"rows are shown as {self._mode}; .mode takes {', '.join(MODES)}")
            case _:
                _say(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}")
        return True

    def _info(self, view: str) -> ViewInfo:
        if view in SCHEMAS and view not in self._reader.views():
            return ViewInfo(view, SCHEMAS[view], "append")
        return self._reader.info(view)

    def _views(self) -> None:
        lines = []
        for name in self._reader.views():
            info = self._reader.info(name)
            lines.append([name, ", ".join(info.keys) or "(rows as they came)", str(len(info.schema))])
        table_text(["view", "key", "columns"], lines, [2])

    def _schema(self, info: ViewInfo) -> None:
        lines = []
        for each in info.schema:
            role = "" if each.name not in info.keys else "key" if each.name in info.routing_keys else "key, window"
            lines.append([each.name, str(each.type), role])
        table_text(["column", "type", "key"], lines)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C while the editor has not the terminal; whoever presses it again wants to be gone."""
        if self._cancelled.is_set():
            die_of(signal.SIGINT)
        self._cancelled.set()


def _ended(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _say(text: str, *, dim: bool = False) -> None:
    """Beside the rows: to whoever sits there."""
    sys.stdout.flush()
    if dim and _colours():
        text = f"\x1b[2m{text}\x1b[0m"
    os.write(1, (text + "\n").encode(errors="replace"))


def _colours() -> bool:
    return "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _fresh(answers: Mapping[str, Answer]) -> str:
    """How fresh what was read is."""
    saved = list(saved_parts(answers))
    if saved:
        return "; " + "; ".join(saved)
    return "; live" if answers else ""


def _side_by_side(schema: pa.Schema, batches: list[pa.RecordBatch]) -> None:
    """Columns under their names; where there is no room for all, the longest are cut."""
    right = [is_number(each.type) for each in schema]
    columns = [[text for each in batches for text in cells(each.column(place))] for place in range(len(schema))]
    widths = [max(map(width, [name, *column])) for name, column in zip(schema.names, columns, strict=True)]
    room = shutil.get_terminal_size((1 << 20, 24)).columns
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > LEAST:
        longest = widths.index(max(widths))
        beyond = sum(widths) + 2 * (len(widths) - 1) - room
        second = max([LEAST, *(each for place, each in enumerate(widths) if place != longest)])
        widths[longest] = max(min(widths[longest] - 1, second), widths[longest] - beyond, LEAST)
    shown = [[_cut(text, wide) for text in column] for column, wide in zip(columns, widths, strict=True)]
    names = [_cut(name, wide) for name, wide in zip(schema.names, widths, strict=True)]
    lines = Lines(names, right)
    if _colours():
        lines.marks = "\x1b[4m", "\x1b[0m"
    lines.write(list(zip(*shown, strict=True)))


def _cut(text: str, wide: int) -> str:
    if width(text) <= wide:
        return text
    while width(text) > wide - 1:
        text = text[: min(len(text) - 1, wide)]
    return text + "…"


def _one_below_the_other(schema: pa.Schema, batches: list[pa.RecordBatch]) -> str:
    """A line for each value, an empty one between two rows."""
    wide = max((width(each) for each in schema.names), default=0)
    names = [" " * (wide - width(each)) + each for each in schema.names]
    rows = []
    for batch in batches:
        for line in zip(*map(cells, batch.columns), strict=True):
            rows.append("".join(f"{name}  {text}\n" for name, text in zip(names, line, strict=True)))
    return "\n".join(rows)
