"""The text that is typed at the prompt: where a statement ends, and where in it a mistake is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import duckdb
import pyarrow as pa

from flowstate.command.rows import width

#: What is read as a whole: names and texts in quotes, texts in dollars, comments; then what ends a statement.
_PIECE = re.compile(
    r"""'(?:[^']|'')*+(?:'|$)|"(?:[^"]|"")*+(?:"|$)|(\$[A-Za-z_0-9]*\$).*?(?:\1|$)|--[^\n]*|/\*.*?(?:\*/|$)|(?P<end>;)""",
    re.DOTALL,
)


def split(text: str) -> tuple[list[str], str]:
    """The statements in `text` that end with ``;``, without it, and what is left after the last one."""
    found, begun = [], 0
    for piece in _PIECE.finditer(text):
        if piece["end"]:
            if statement := text[begun : piece.start()].strip():
                found.append(statement)
            begun = piece.end()
    return found, text[begun:]


def is_complete(text: str) -> bool:
    """Whether nothing is to be typed any more: a command with a dot, or statements that all have ended."""
    stripped = text.strip()
    if not stripped or (stripped.startswith(".") and "\n" not in stripped):
        return True
    statements, rest = split(text)
    return bool(statements) and not _without_comments(rest).strip()


def _without_comments(text: str) -> str:
    return re.sub(r"--[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


class Mistake(NamedTuple):
    """The `line` of the text that it is in, the characters before it there, and of it."""

    line: str
    before: int
    length: int

    def shown(self) -> tuple[str, str]:
        """The line, and the mark below it."""
        before = "".join(each if each == "\t" else " " * width(each) for each in self.line[: self.before])
        return self.line, before + "^" * self.length


def locate(query: str, message: str, tables: Mapping[str, pa.Schema]) -> Mistake | None:
    """Where in `query` the mistake is that `message` tells of, by DuckDB's own words about empty tables like those of the job; None if it
    has none for it there."""
    with duckdb.connect() as connection:
        connection.execute("set errors_as_json = true")
        for name, schema in tables.items():
            connection.register(name, schema.empty_table())
        prefix = "explain "
        try:
            connection.execute(prefix + query)
            return None
        except duckdb.Error as error:
            try:
                told = json.loads(str(error).partition(": ")[2])
                start, length = json.loads(told.get("location") or f"[{told['position']}, 1]")
                first = " ".join(told["exception_message"].split("\n")[0].split())
            except (ValueError, KeyError, TypeError):
                return None
    if not message.startswith(first[:60]):
        return None
    if told.get("exception_type") != "Parser":  # DuckDB parses what is explained by itself
        start -= len(prefix)
    else:
        start -= len(prefix) if not _fits(query, start, first) else 0
    before = query.encode()[: max(0, start)].decode(errors="replace")
    line = query[before.rfind("\n") + 1 :].partition("\n")[0]
    return Mistake(line, len(before) - before.rfind("\n") - 1, max(1, min(length, len(line))))


def _fits(query: str, start: int, message: str) -> bool:
    """Whether what `message` quotes stands there."""
    quoted = re.search(r'at or near "(.*)"', message)
    return quoted is not None and query.encode()[start:].decode(errors="replace").startswith(quoted[1])
