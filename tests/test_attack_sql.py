"""Served SQL of any content: what a generator of hostile statements makes, sound ones that were changed, and texts that are deep, long
or odd. Each is answered, or refused in clean words and in time; none reaches a file or a variable outside."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from attack import CASES, MIB, cases, nothing_left
from served_sql import Served, served

from flowstate.errors import FlowstateError, InternalError
from flowstate.view.rights import ANYBODY
from flowstate_sql.limits import Limits
from flowstate_sql.lockdown import REFUSED

HARMLESS = sorted(set(Path(__file__).with_name("duckdb_functions.txt").read_text().split("\n")) - {""})
#: What stands outside, in a file and in the environment of this process.
CANARY = "canary-5b1f"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one file."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret.csv").write_text(f"a\n{CANARY}\n")
    os.environ["FLOWSTATE_CANARY"] = CANARY
    yield folder
    del os.environ["FLOWSTATE_CANARY"]
    assert [each.name for each in folder.iterdir()] == ["secret.csv"]


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    limits = Limits(rows=5000, memory=200 * MIB)
    with served(limits) as first:
        first.rows("select count(*) from subtotals")
    del first
    with nothing_left(), served(limits) as found:
        yield found
        found.partitions.clear()


SEEDS = [
    "select customer, sum(total) as s from subtotals where kind = 'a' and events > 3 group by all order by s desc limit 3",
    "with x as (from subtotals at (snapshot => 2)) select count(*) filter (where kind = 'b') from x, subtotals_late l",
    "select a.month, lag(b.total) over (partition by a.kind order by b.events) from subtotals a join subtotals b using (kind)",
    "select list_transform([1, 2], lambda x: x + 1), {'a': [1, 2]}, map([1], ['b']), interval 1 day, $$x$$, e'\\n'",
    "select * exclude (total) replace (kind || 'x' as kind) from subtotals where customer like 'c%' union all from subtotals",
    "select case when events between 1 and 2 then 'x' else null end, exists (from subtotals_late) from subtotals",
    "pivot subtotals on kind in ('a', 'b') using sum(total) group by month",
    "explain select kind, approx_count_distinct(customer), string_agg(customer, ',' order by customer) from subtotals group by 1",
    "from flowstate_views select unnest(columns) limit 3",
    "select json_extract('{\"a\": [1]}', '$.a[0]'), regexp_replace('abc', 'b+', 'x'), strftime(month, '%Y') from subtotals",
    "describe subtotals",
    "select count(*) from range(1, 10) r(i) positional join generate_series(1, 3) where i % 2 = 0 having count(*) > 0",
]
WORDS = """
    ' " ( ) [ ] { } ; -- /* */ $1 ? $ #1 :: -> := .. * - 1e400 0x \\ null select from union lateral explain analyze recursive nan inf é
    99999999999999999999999999999999999999999 -9223372036854775808 flowstate_partitions information_schema.columns pg_class subtotals wide
    read_text('/etc/passwd') getenv('HOME') columns(*) ::int[3] %s
"""
PIECES = [
    *WORDS.split(),
    *(
        "with a as (",
        "at (snapshot => 1)",
        "at (snapshot",
        "over ()",
        "at time zone",
        "tablesample 10%",
        "::decimal(38, 38)",
    ),
    *("\0", "\u202e", "\U0001f600", "\ud800", "\x1b"),
]
VALUES = [
    *(
        "customer",
        "kind",
        "month",
        "total",
        "events",
        "null",
        "1",
        "-3",
        "0.5",
        "''",
        "'ab'",
        "true",
        "[1, 2, null]",
        "['a']",
        "{'a': 1}",
    ),
    *(
        "map([1], ['b'])",
        "date '2026-01-01'",
        "interval 3 day",
        "'a'::blob",
        "'1e-3'::double",
        "'nan'::double",
        "time '10:00'",
        "'101'::bit",
    ),
    *(
        "'{\"a\": 1}'::json",
        "170141183460469231731687303715884105727",
        "'day'",
        "lambda x: x",
        "uuid()",
        "month::timestamp",
        "'%Y-%m'",
    ),
]


def called(chance: random.Random) -> str:
    """A function of values, with any arguments."""
    name = chance.choice(HARMLESS)
    given = ", ".join(chance.choice(VALUES) for _ in range(chance.choice((0, 1, 1, 2, 2, 2, 3, 4))))
    over = chance.choice(("", "", "", " over (partition by kind order by events)"))
    return f'select "{name}"({given}){over} from subtotals limit 3'


def mutated(chance: random.Random) -> str:
    text = chance.choice(SEEDS)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        at, to = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        kind = chance.randrange(6)
        if kind == 0:
            text = text[:at] + text[min(to, at + 12) :]
        elif kind == 1:
            text = text[:at] + " " + chance.choice(PIECES) + " " + text[at:]
        elif kind == 2:
            words = text.split(" ")
            chance.shuffle(words)
            text = " ".join(words)
        elif kind == 3:
            text = text[:at] + chr(chance.choice([chance.randrange(128), chance.randrange(0xFFFF)])) + text[at:]
        elif kind == 4:
            words, other = text.split(" "), chance.choice(SEEDS).split(" ")
            words[chance.randrange(len(words))] = chance.choice(other)
            text = " ".join(words)
        else:
            text = text[:to] + text[at:to] * 2 + text[to:]
    return text[:3000]


JOINS = ("join", "left join", "asof join", "positional join", ", lateral")
TYPES = ("int", "varchar", "json", "blob", "decimal(38, 10)", "subtotals", "int[]", "x")


class Statements:
    """Statements by a grammar, of functions that are harmless and that are not, over views, files and what DuckDB tells of itself."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.chance, self.folder = chance, folder
        with duckdb.connect() as plain:
            kinds = "function_type like '%table%' or function_type = 'pragma'"
            listed = f"select distinct function_name from duckdb_functions() where {kinds}"
            self.tables = sorted(name for (name,) in plain.sql(listed).fetchall())
            self.system = [
                name for (name,) in plain.sql("select view_name from duckdb_views() where internal").fetchall()
            ]
        self.refused, self.hostile = sorted(REFUSED), True

    def one(self) -> str:
        chance = self.chance
        self.hostile = chance.random() < 0.4
        match chance.randrange(0 if self.hostile else 4, 12):
            case 0:
                return f"copy ({self.select(1)}) to '{self.folder}/out{chance.choice(('.csv', '.parquet', ''))}'"
            case 1:
                return f"{chance.choice(('create table x as', 'create view x as', 'insert into subtotals', 'execute'))} {self.select(1)}"
            case 2:
                return f"{chance.choice(('explain', 'explain analyze', 'describe', 'summarize', 'prepare p as'))} {self.select(2)}"
            case 3:
                return f"{self.select(1)}; {self.select(0)}"
            case 4:
                return f"/* {chance.choice(PIECES)} */ {'/**/' * chance.choice((1, 30, 3000))} -- x\n{self.select(1)}"
            case _:
                return self.select(3)

    def select(self, depth: int) -> str:
        chance = self.chance
        rows = self.rows(depth - 1)
        names = ", ".join(self.value(depth) for _ in range(chance.choice((1, 1, 2, 3))))
        parts = [f"select {chance.choice(('', '', 'distinct '))}{names} from {rows}"]
        if chance.random() < 0.4:
            parts.append(f"where {self.value(depth - 1)}")
        if chance.random() < 0.2:
            parts.append(f"group by {chance.choice(('all', '1', 'kind', 'rollup (kind, month)', 'cube (1)'))}")
        if chance.random() < 0.1:
            parts.append(f"qualify row_number() over (order by {self.value(0)}) < 3")
        if chance.random() < 0.2:
            parts.append(f"order by {self.value(0)}")
        text = " ".join(
            [
                *parts,
                f"limit {self.limit()}",
            ]
        )
        if depth > 0 and chance.random() < 0.15:
            text = f"with {chance.choice(('', 'recursive '))}x as {chance.choice(('', 'materialized '))}({self.select(depth - 1)}) {text}"
        if depth > 0 and chance.random() < 0.1:
            text = f"{text} {chance.choice(('union', 'union all by name', 'except', 'intersect all'))} {self.select(depth - 1)}"
        return text

    def limit(self) -> str:
        return self.chance.choice(("-1", "null", "10%", "9" * 19, self.value(0))) if self.hostile else "3"

    def rows(self, depth: int) -> str:
        chance = self.chance
        if not self.hostile and chance.random() < 0.7:
            return "subtotals"
        match chance.randrange(0 if self.hostile else 3, 10):
            case 0:
                return f"{chance.choice(self.tables)}('{self.folder}/secret.csv')"
            case 1:
                return f"'{self.folder}/{chance.choice(('secret.csv', '*', '../*/secret.csv'))}'"
            case 2:
                return chance.choice((*self.system, "here", "CANARY", "os", "sqlite_master", "x"))
            case 3 if depth > 0:
                return f"({self.select(depth - 1)}) {chance.choice(('', 'a', 'subtotals'))}"
            case 4 if depth > 0:
                return f"{self.rows(0)} {chance.choice(JOINS)} {self.rows(0)} using (kind)"
            case 5:
                unit = chance.choice(("snapshot", "version", "timestamp" if self.hostile else "version"))
                return f"subtotals at ({unit} => {chance.choice('12903' if self.hostile else '12')})"
            case 6:
                return f"range({self.value(0) if self.hostile else 3})"
            case _:
                return chance.choice(
                    ("subtotals", "subtotals", "subtotals_late", "flowstate_views", "(values (1), (null)) v(kind)")
                )

    def value(self, depth: int) -> str:
        chance = self.chance
        match chance.randrange(0 if self.hostile else 2, 14):
            case 0:
                return f"{chance.choice(self.refused)!r}('{self.folder}/secret.csv')".replace("'", '"', 2)
            case 1:
                return "getenv('FLOWSTATE_CANARY')"
            case 2 if depth > 0:
                return f"(select {self.value(depth - 1)} from {self.rows(depth - 1)} limit 1)"
            case 3 if depth > 0:
                return f"case when {self.value(depth - 1)} then {self.value(0)} else {self.value(0)} end"
            case 4 if depth > 0:
                return f"{self.value(depth - 1)}::{chance.choice(TYPES)}"
            case 5 if depth > 0:
                operator = chance.choice(
                    (
                        "+",
                        "-",
                        "*",
                        "/",
                        "//",
                        "||",
                        "=",
                        "<",
                        "in",
                        "like",
                        "~",
                        "and",
                        "is distinct from",
                        "->>",
                        "@>",
                    )
                )
                return f"({self.value(depth - 1)} {operator} {self.value(depth - 1)})"
            case 6 | 7 | 8 if depth > 0:
                given = ", ".join(self.value(depth - 1) for _ in range(chance.choice((0, 1, 1, 2, 2, 3))))
                over = chance.choice(("", "", "", " over (order by events)", " filter (where events > 3)"))
                return f'"{chance.choice(HARMLESS)}"({given}){over}'
            case 9 if self.hostile:
                return chance.choice(
                    ("$1", "?", "#1", "*", "columns(*)", "subtotals", "rowid", "current_user", "pg_catalog.version()")
                )
            case _:
                return chance.choice(VALUES if self.hostile else VALUES[:9])


def odd(chance: random.Random) -> str:
    """Deep, long, or of characters that are rare."""
    many = chance.choice((20, 90, 110, 110, 110, 300))
    match chance.randrange(9):
        case 0:
            return f"select {'(' * many}1{')' * chance.choice((many, many - 1))}"
        case 1:
            return "select " + chance.choice(("not ", "- ", "1 + ", "[", "{'a': ", "case when true then ")) * many + "1"
        case 2:
            return "from (" * many + "select 1" + ")" * many
        case 3:
            return (
                "select "
                + chance.choice(("1, ", "'x' || ", "subtotals.", "sum(events), ")) * (many * 3)
                + "1 from subtotals limit 1"
            )
        case 4:
            return (
                chance.choice(("/**/", "-- \n", "/*", "explain ", ";", "((", "with a as (", "at (snapshot => 1) "))
                * (many * 5)
                + "select 1"
            )
        case 5:
            return "".join(
                chr(chance.choice((32, 39, 34, 92, 0x3000, 0x200B, 0xFEFF, 0x1F600, 0x10FFFF, 0xE9))) for _ in range(40)
            )
        case 6:
            name = "".join(chr(chance.choice((0x61, 0x301, 0x202E, 0x130, 0xDF, 0xFB01, 0x10400))) for _ in range(many))
            return f'select 1 as "{name}", \'{name}\' from "{name}"' if chance.random() < 0.5 else f"select 1 as {name}"
        case 7:
            return f"select '{'x' * (many * 100)}' || $${'y' * many}$$ as \"{'n' * many}\""
        case _:
            return "select 1" + " union all select 1" * many


def what(chance: random.Random, statements: Statements) -> str:
    match chance.randrange(10):
        case 0 | 1 | 2 | 3:
            return statements.one()
        case 4 | 5 | 6:
            return mutated(chance)
        case 7:
            return odd(chance)
        case _:
            return called(chance)


@pytest.mark.timeout(1800)
def test_statements(here: Served, outside: Path) -> None:
    chance = random.Random(20261121)
    statements, told, answered, count, longest = Statements(chance, outside), [""], 0, 0, 0.0
    for number in cases(grows=32, count=CASES // 4):  # those of the others cost a quarter
        query, count, began = what(chance, statements), number + 1, time.monotonic()
        try:
            params = chance.choice(([1], [1, 2], {"a": "x"}, None)) if "$" in query or "?" in query else None
            running = here.sql.run(query, params, timeout=2.0)
            text = "".join(str(each.to_pydict()) for each in running.batches())
            assert CANARY not in text.replace("FLOWSTATE_CANARY", ""), query
            answered += 1
        except InternalError as error:
            raise AssertionError(query) from error
        except FlowstateError as error:
            text = str(error)
            assert not any(each in text for each in (CANARY, "Traceback", "site-packages", "0x7f")), (query, text)
            told.append(text)
        longest = max(longest, time.monotonic() - began)
    print(f"{answered} of {count} answered, the longest took {longest:.1f} s")
    assert count // 20 < answered < count // 2
    assert longest < 20
    assert here.sql._slots.taken() == 0
    assert here.rows("select count(*) n from subtotals") == [{"n": 122}]
    assert len(here.sql._principals[ANYBODY.name]._parsed) <= 256
