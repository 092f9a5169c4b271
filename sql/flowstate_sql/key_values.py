"""What a query computes of key columns alone is computed once per row, and kept for when the query comes again.

The key columns of a chunk are made once, and scans give the same arrays until the chunk gets more rows (`flowstate.state.chunk`). So an
array is known by where its memory lies, of which enough is held here that nothing else can come to lie there: all but the texts. A query
that is asked a second time is taken apart: expressions of key columns become columns of their own. Texts among these have a dictionary, by
which DuckDB groups faster than by the texts, and far faster than by computing them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate_sql.kept import Kept
from flowstate_sql.reading import Readings
from flowstate_sql.syntax import ROWS, Node, NotSplit, Syntax, bare, column, named, nodes, parameters, replaced

#: Bytes that a process keeps at most: of some 8 million rows, one expression.
MOST_BYTES = 64 << 20
#: Rows of a batch that are worth keeping something about, and batches of less that a query may read.
LEAST_ROWS, MOST_SMALL = 1024, 64

_FIRST, _SMALL = "it came for the first time", "its rows lie in small pieces"
#: A query over `ROWS`, their schema, and the key columns among them.
Asked = tuple[str, pa.Schema, tuple[str, ...]]


@dataclass(frozen=True)
class Apart:
    """A query in two: `of_keys` computes columns of those of `keys`; `query` reads them and `others`, which together are `schema`."""

    asked: Asked
    of_keys: str
    keys: pa.Schema
    query: str
    others: tuple[str, ...]
    schema: pa.Schema


class Held:
    """Columns by what they were computed of; what was used longest ago makes room. Thread safe."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most, self.nbytes = most, 0
        self._held: OrderedDict[Any, tuple[list[pa.Array], list[pa.Buffer], int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> tuple[list[pa.Array], int] | None:
        """With their bytes."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                return None
            self._held.move_to_end(key)
            return found[0], found[2]

    def put(self, key: Any, columns: list[pa.Array], pinned: list[pa.Buffer]) -> int:
        """`pinned` is what has to stay where it lies. How many bytes it takes."""
        nbytes = sum(each.nbytes for each in columns) + sum(each.size for each in pinned)
        with self._lock:
            before = self._held.pop(key, None)
            self._held[key] = columns, pinned, nbytes
            self.nbytes += nbytes - (before[2] if before is not None else 0)
            while self.nbytes > self.most:
                self.nbytes -= self._held.popitem(last=False)[1][2]
        return nbytes


class KeyValues:
    """Of the queries of one DuckDB, whose time zone is `zone`. Thread safe."""

    def __init__(
        self, cursor: Callable[[], duckdb.DuckDBPyConnection], readings: Readings, held: Held, zone: str
    ) -> None:
        self._cursor, self._readings, self._held, self._zone = cursor, readings, held, zone
        self._syntax = Syntax(cursor())
        self._apart = Kept[Apart | str]()  # or why it is not
        self._lock = threading.Lock()

    def taken(
        self, sql: str, schema: pa.Schema, keys: Sequence[str], batches: Iterator[pa.RecordBatch]
    ) -> tuple[str, pa.Schema, Iterator[pa.RecordBatch]]:
        """A checked query, and the rows that it reads, as they are to be run: taken apart, or as they are. `keys` are the key columns that
        scans give again. Reading raises InvalidFlow for a value that cannot be computed: its row may be one that is not asked for."""
        asked = (sql, schema, tuple(keys))
        with self._lock:
            found = self._apart.get(asked)
            if found == _FIRST:
                found = self._taken_apart(asked)
                self._apart.put(asked, found, len(sql))
        if found is None:
            return sql, schema, self._looked_at(asked, batches)
        if isinstance(found, str):
            return sql, schema, batches
        return found.query, found.schema, self._rows(found, batches)

    def _looked_at(self, asked: Asked, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        small = 0
        for batch in batches:
            small += batch.num_rows < LEAST_ROWS
            yield batch
        self._tell(asked, _FIRST if small <= MOST_SMALL else _SMALL)

    def _rows(self, apart: Apart, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        small, spent = 0, 0
        for batch in batches:
            small += batch.num_rows < LEAST_ROWS
            columns, nbytes = self._columns(apart, [batch.column(name) for name in apart.keys.names])
            spent += nbytes
            columns = [*columns, *(batch.column(name) for name in apart.others)]
            yield pa.RecordBatch.from_arrays(columns, schema=apart.schema)
        if small > MOST_SMALL:
            self._tell(apart.asked, _SMALL)
        if spent > self._held.most:
            self._tell(apart.asked, "it has more values than are kept: they would drive each other out")

    def _columns(self, apart: Apart, keys: list[pa.Array]) -> tuple[list[pa.Array], int]:
        key = (self._zone, apart.of_keys, *(_place(each) for each in keys))
        found = self._held.get(key)
        if found is not None:
            return found
        rows = pa.RecordBatch.from_arrays(keys, schema=apart.keys)
        try:
            with self._readings.of(apart.keys) as reading:
                columns = _encoded(reading.run(apart.of_keys, {}, iter([rows])))
        except duckdb.Error as error:
            self._tell(apart.asked, str(error))
            raise InvalidFlow("a partition does not compute this query; ask for the rows", reason=str(error)) from None
        # without the last buffer of texts: where they begin tells one array from another as well
        pinned = [part for each in keys for part in each.buffers()[:2] if part is not None]
        return columns, self._held.put(key, columns, pinned)

    def _tell(self, asked: Asked, reason: str) -> None:
        """Why it is run as it is from now on."""
        with self._lock:
            self._apart.put(asked, reason, len(asked[0]))

    def _taken_apart(self, asked: Asked) -> Apart | str:
        sql, schema, keys = asked
        try:
            tree = self._syntax.tree(sql)
            rest, found = _replaced(self._syntax, tree, keys, schema)
            read = _read(found)
            of = schema.empty_table().select([name for name in keys if name in read]).schema
            select = {**tree, "select_list": found, "group_expressions": [], "group_sets": [], "where_clause": None}
            of_keys, query = self._syntax.text(select), self._syntax.text(rest)
            others = tuple(name for name in schema.names if name in _read(rest))
            with closing(self._cursor()) as before, closing(self._cursor()) as after:
                before.register(ROWS, schema.empty_table())
                wanted, values = before.sql(sql), before.sql(of_keys)
                columns = _encoded(values.to_arrow_table())
                fields = [pa.field(name, each.type) for name, each in zip(values.columns, columns, strict=True)]
                whole = pa.schema([*fields, *(schema.field(name) for name in others)])
                after.register(ROWS, whole.empty_table())
                given, got = after.sql(f"select {', '.join(values.columns)} from {ROWS}"), after.sql(query)
                same = (got.columns, got.types, given.types) == (wanted.columns, wanted.types, values.types)
        except (NotSplit, duckdb.Error, KeyError, TypeError, IndexError, RecursionError) as error:
            return str(error)
        return Apart(asked, of_keys, of, query, others, whole) if same else "its values would come to other types"


def _replaced(syntax: Syntax, tree: Node, keys: Collection[str], schema: pa.Schema) -> tuple[Node, list[Node]]:
    """A SELECT with columns in the place of what it computes of key columns alone, and these expressions by their new names."""
    if tree["modifiers"] or tree["having"] or tree["aggregate_handling"] != "STANDARD_HANDLING" or parameters(tree):
        raise NotSplit("it is none that a split gives, or has parameters")
    if any(name.startswith("__k") for name in schema.names):
        raise NotSplit("the view has such names itself")
    groups = [bare(each) for each in tree["group_expressions"]]
    found: list[Node] = []

    def change(node: Node) -> Node | None:
        if "class" not in node or not _is_of(syntax, node, keys):
            return None
        plain = bare(node)
        if node["class"] == "COLUMN_REF" and not (
            plain in groups and _is_text(schema.field(node["column_names"][0]).type)
        ):
            return None
        if plain not in map(bare, found):
            found.append(named(node, f"__k{len(found)}"))
        return named(column(f"__k{[bare(each) for each in found].index(plain)}"), node["alias"])

    rest: Node = replaced(tree, change)
    if not found:
        raise NotSplit("it computes nothing of key columns alone")
    return rest, found


def _is_of(syntax: Syntax, node: Node, keys: Collection[str]) -> bool:
    columns = [each["column_names"] for each in nodes(node) if each.get("class") == "COLUMN_REF"]
    return (
        bool(columns)
        and all(len(each) == 1 and each[0] in keys for each in columns)
        and not any(map(syntax.is_aggregate, nodes(node)))
    )


def _read(tree: Any) -> set[str]:
    """The first names of all columns in a tree."""
    return {each["column_names"][0] for each in nodes(tree) if each.get("class") == "COLUMN_REF"}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _encoded(table: pa.Table) -> list[pa.Array]:
    """Its columns, each in one piece, and texts with a dictionary."""
    whole = [each.combine_chunks() for each in table.columns]
    return [each.dictionary_encode() if _is_text(each.type) else each for each in whole]


def _place(array: pa.Array) -> tuple[Any, ...]:
    """What tells this array from any other that is there at the same time."""
    buffers = array.buffers()
    return array.type, array.offset, len(array), *(0 if each is None else each.address for each in buffers)
