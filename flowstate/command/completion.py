"""What may come next in a query: views, columns of those that it names, DuckDB's functions and keywords."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import duckdb
import pyarrow as pa

from flowstate_sql.lockdown import REFUSED

#: Commands of the prompt, each with what it does.
COMMANDS = {
    ".help": "what can be typed here",
    ".views": "the views, and by which keys they are kept",
    ".schema": "the columns of a view: .schema VIEW",
    ".mode": "how rows are shown: .mode text, line, json or csv",
    ".quit": "leave, as Ctrl-D does",
}
MODES = ("text", "line", "json", "csv")
_WORD = re.compile(r"[\w.]*$")
_BEFORE = re.compile(r"(\w+)\s+$")


class Suggestion(NamedTuple):
    """`text` in the place of the `length` characters before the cursor; `about` is said beside it."""

    text: str
    length: int
    about: str


class Words:
    """Of a job whose tables are `tables`."""

    def __init__(self, tables: Mapping[str, pa.Schema]) -> None:
        self.tables = tables

    @cached_property
    def _known(self) -> tuple[list[str], list[str]]:
        """DuckDB's keywords, and its functions that may be used."""
        with duckdb.connect() as connection:
            keywords = connection.sql(
                "select distinct lower(keyword_name) from duckdb_keywords() order by 1"
            ).fetchall()
            functions = connection.sql(
                "select distinct function_name from duckdb_functions() where function_type in ('scalar', 'aggregate', 'macro') "
                "and regexp_full_match(function_name, '[a-z][a-z_0-9]+') order by 1"
            ).fetchall()
        return [name for (name,) in keywords], [name for (name,) in functions if name not in REFUSED]

    def after(self, text: str, whole: str) -> Iterator[Suggestion]:
        """What may come after `text`, the part before the cursor of what was typed, `whole`."""
        word = _WORD.search(text)[0]  # type: ignore[index]
        rest = text[: len(text) - len(word)]
        if text.lstrip().startswith("."):
            return self._of_command(text.lstrip(), word)
        if "." in word:
            qualifier, _, word = word.rpartition(".")
            return self._columns(word, self._named(qualifier, whole))
        before = _BEFORE.search(rest)
        if before is not None and before[1].lower() in ("from", "join"):
            return _starting(word, ((name, "view") for name in self.tables))
        return self._all(word, whole)

    def _of_command(self, text: str, word: str) -> Iterator[Suggestion]:
        command, space, _ = text.partition(" ")
        if not space:
            return _starting(word, COMMANDS.items())
        if command == ".mode":
            return _starting(word, ((each, "") for each in MODES))
        return _starting(word, ((name, "view") for name in self.tables if command == ".schema"))

    def _named(self, qualifier: str, whole: str) -> list[str]:
        """The table that a qualifier is, or stands for."""
        for name in self.tables:
            alias = re.search(rf"\b{re.escape(name)}\s+(?:as\s+)?{re.escape(qualifier)}\b", whole, re.IGNORECASE)
            if name.lower() == qualifier.lower() or alias is not None:
                return [name]
        return []

    def _columns(self, word: str, tables: list[str]) -> Iterator[Suggestion]:
        seen: set[str] = set()
        for table in tables:
            for each in self.tables[table]:
                if each.name not in seen and each.name.lower().startswith(word.lower()):
                    seen.add(each.name)
                    yield Suggestion(each.name, len(word), f"{each.type} of {table}")

    def _all(self, word: str, whole: str) -> Iterator[Suggestion]:
        if not word:
            return
        words = {each.lower() for each in re.findall(r"\w+", whole)}
        named = [name for name in self.tables if name.lower() in words]
        mine = [name for name in self.tables if not name.startswith("flowstate_")]
        yield from self._columns(word, named or mine)
        yield from _starting(word, ((name, "view") for name in self.tables))
        keywords, functions = self._known
        upper = word.isupper()
        yield from _starting(word, ((each.upper() if upper else each, "") for each in keywords))
        yield from _starting(word, ((each, "function") for each in functions if each not in keywords))


def _starting(word: str, known: Iterable[tuple[str, str]]) -> Iterator[Suggestion]:
    for name, about in known:
        if name.lower().startswith(word.lower()):
            yield Suggestion(name, len(word), about)
