"""Served SQL reaches views and nothing else: every function of DuckDB is either harmless or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from served_sql import Served, served

from flowstate.errors import InvalidFlow
from flowstate.view.rights import ANYBODY, Principal
from flowstate_sql.limits import Limits
from flowstate_sql.lockdown import DEEPEST, DEEPEST_WITH, REFUSED, TABLE_FUNCTIONS

#: Functions of values that somebody has looked at: they show and change nothing but their arguments.
HARMLESS = set(Path(__file__).with_name("duckdb_functions.txt").read_text().split("\n")) - {""}


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with served(Limits(rows=5000, memory=200 << 20)) as here:
        yield here


def listed(*kinds: str) -> list[str]:
    with duckdb.connect() as plain:
        found = plain.sql("select distinct lower(function_name) n, function_type t from duckdb_functions()").fetchall()
    return sorted({name for name, kind in found if kind in kinds})


def test_every_kind_of_function_is_known() -> None:
    """If this fails, DuckDB has functions of a new kind, which none of the tests here lists."""
    with duckdb.connect() as plain:
        kinds = {kind for (kind,) in plain.sql("select distinct function_type from duckdb_functions()").fetchall()}
    assert kinds == {"scalar", "macro", "aggregate", "window", "table", "table_macro", "pragma"}


def test_every_function_of_values_has_been_looked_at() -> None:
    """If this fails, DuckDB has new functions: see what they do, and write them into duckdb_functions.txt or into `REFUSED`."""
    collating = ("collate_", "icu_collate_")
    new = {each for each in listed("scalar", "macro", "aggregate", "window") if not each.startswith(("__", *collating))}
    assert sorted(new - HARMLESS - REFUSED) == []
    assert HARMLESS.isdisjoint(REFUSED)


def test_refused_functions_are_refused(here: Served) -> None:
    internal = [each for each in listed("scalar", "macro") if each.startswith("__")]
    assert internal
    for name in [*sorted(REFUSED), *internal]:
        for query in (
            'select "{}"()',
            "select system.main.\"{}\"('x', 1)",
            "select 'x'.\"{}\"()",
            'from subtotals order by "{}"(1)',
        ):
            with pytest.raises(InvalidFlow, match="is not for queries here"):
                here.rows(query.format(name))
    with pytest.raises(InvalidFlow, match="EXPORT_STATE"):
        here.rows("select sum(events) export_state from subtotals")


def test_of_table_functions_all_but_a_few_are_refused(here: Served) -> None:
    """Whatever DuckDB lists, and so whatever it will list."""
    names = listed("table", "table_macro", "pragma")
    assert len(names) > 100
    for name in names:
        for query in (
            'from "{}"()',
            "select * from system.main.\"{}\"('/etc/passwd')",
            "with x as (from \"{}\"('/etc/passwd')) from x",
        ):
            if name in TABLE_FUNCTIONS:
                continue
            with pytest.raises(InvalidFlow, match="there is no table function"):
                here.rows(query.format(name))
        for query in (f"call {name}()", f"pragma {name}", f"pragma {name}('x')"):
            with pytest.raises(InvalidFlow, match=r"read only|syntax error"):
                here.rows(query)
    assert here.rows("select count(*) n from range(3), generate_series(1, 2), unnest([1, 2])") == [{"n": 12}]


def test_what_duckdb_tells_of_itself_is_refused(here: Served) -> None:
    with duckdb.connect() as plain:
        internal = plain.sql("select schema_name, view_name from duckdb_views() where internal").fetchall()
    assert len(internal) > 30
    allowed = 0
    for schema, view in internal:
        for name in (view, f"{schema}.{view}", f"system.{schema}.{view}"):
            if schema == "information_schema" and name != view:
                try:
                    here.rows(f"from {name} limit 1")
                    allowed += 1
                    continue
                except InvalidFlow as error:
                    assert "there is no view 'information_schema." in str(error)  # noqa: PT017
            with pytest.raises(InvalidFlow, match=r"there is no (view|table)"):
                here.rows(f"from {name}")
        if schema != "information_schema":
            with pytest.raises(InvalidFlow, match="of its own"):
                here.rows(f"select * from (with {view} as (select 1) from {view}), {view}")
    assert 6 <= allowed <= 20
    for shown in ("databases", "variables", "schemas", "all tables"):
        if shown == "all tables":
            assert here.rows("show all tables")
            continue
        with pytest.raises(InvalidFlow, match=r"nothing else is shown|there is no view"):
            here.rows(f"show {shown}")


@pytest.mark.parametrize(
    "query",
    [
        "from '/etc/passwd'",
        "from '/etc/*.conf'",
        "from 'data.csv'",
        "from 's3://bucket/data.parquet'",
        "from 'https://example.org/data.parquet'",
        "from \".tmp/x.parquet\"",
        "select (select content from read_text('/etc/passwd'))",
        "from subtotals where customer in (from read_blob('/etc/passwd'))",
        "from query('select 1')",
        "from query_table('subtotals')",
        "from query_table(['subtotals', 'wide'])",
        "from json_execute_serialized_sql(json_serialize_sql('select 1'))",
        "from python_map_function(1)",
        "from arrow_scan(1, 2, 3)",
        "from pandas_scan(94123456)",
        "from python_arrow_scan(94123456, 94123456, 94123456)",
        "from here",
        "from served",
        "from TABLES",
        "attach ':memory:' as other",
        "attach '/tmp/x.db'",
        "detach memory",
        "use temp",
        "copy subtotals to '/tmp/x.csv'",
        "copy (select 1) to '/tmp/x.parquet'",
        "copy subtotals from '/etc/passwd'",
        "export database '/tmp/x'",
        "import database '/tmp/x'",
        "install httpfs",
        "load httpfs",
        "update extensions",
        "create table x as select 1",
        "create view x as select 1",
        "create macro x() as 1",
        "create temp table x (a int)",
        "create secret (type s3)",
        "create type x as enum ('a')",
        "create schema x",
        "create sequence x",
        "insert into subtotals select * from subtotals",
        "update subtotals set kind = 'a'",
        "delete from subtotals",
        "truncate subtotals",
        "alter table subtotals rename to x",
        "drop view subtotals",
        "merge into subtotals using wide on true when matched then delete",
        "set memory_limit = '100GB'",
        "set variable x = 1",
        "reset threads",
        "set global enable_external_access = true",
        "pragma enable_profiling",
        "pragma database_list",
        "call pragma_version()",
        "prepare x as select 1",
        "execute x",
        "deallocate x",
        "begin",
        "commit",
        "rollback",
        "checkpoint",
        "vacuum",
        "analyze",
        "explain copy subtotals to '/tmp/x'",
        "explain analyze create table x as select 1",
        "explain (format json) delete from subtotals",
        "comment on view subtotals is 'x'",
        "select 1; drop view subtotals",
        "select * from memory.pg_catalog.pg_class",
        "select * from other.subtotals",
        "describe '/etc/passwd'",
        "summarize '/etc/passwd'",
        "describe duckdb_settings()",
    ],
)  # fmt: skip
def test_ways_out(here: Served, query: str) -> None:
    with pytest.raises(InvalidFlow) as refused:
        here.rows(query)
    assert "root:" not in str(refused.value)
    with pytest.raises(InvalidFlow):
        here.sql.describe(query)


def test_settings_hold_behind_all_that(here: Served) -> None:
    """What a query could do that was let in."""
    assert here.rows("select 1 as one") == [{"one": 1}]
    own = here.sql._principals[ANYBODY.name]
    settings = dict(own.session._cursor().sql("select name, value from duckdb_settings()").fetchall())
    assert settings["enable_external_access"] == "false"
    assert settings["lock_configuration"] == "true"
    assert settings["python_enable_replacements"] == "false"
    assert settings["allow_community_extensions"] == "false"
    assert settings["autoload_known_extensions"] == "false"
    assert settings["temp_directory"] == ""
    assert ".tmp" not in settings["allowed_directories"]
    for statement in (
        "select * from read_text('/etc/passwd')",
        "copy (select 1) to '/tmp/flowstate_lockdown.csv'",
        "attach '/tmp/flowstate_lockdown.db'",
        "install httpfs",
        "set enable_external_access = true",
        "set temp_directory = '/tmp'",
    ):
        with pytest.raises(duckdb.Error):
            own.session._cursor().sql(statement)


def test_principals_share_no_database(here: Served) -> None:
    anna, bob = Principal("anna"), Principal("bob")
    assert here.rows("select 1 as one", who=anna) == here.rows("select 1 as one", who=bob)
    first, second = (here.sql._principals[each.name].session._cursor() for each in (anna, bob))
    first.execute("create table of_anna as select 1 as x")
    assert first.sql("from of_anna").fetchall() == [(1,)]
    with pytest.raises(duckdb.CatalogException):
        second.sql("from of_anna")
    with pytest.raises(InvalidFlow, match="there is no view"):
        here.rows("from of_anna", who=anna)


def test_nesting_that_the_parser_takes_for_ever_over(here: Served) -> None:
    for query in (
        "with a as (" * 40,
        "with a as (" * 30 + "selec" + ") select 1" * 30,
        "select " + "(" * 5000,
        "(" * 3000 + ")" * 3000,
    ):
        with pytest.raises(InvalidFlow, match="nested too deeply"):
            here.rows(query)
        with pytest.raises(InvalidFlow, match="nested too deeply"):
            here.rows("explain " + query)
    deep = "select " + "(" * (DEEPEST - 5) + "1" + ")" * (DEEPEST - 5) + " as one"
    assert here.rows(deep) == [{"one": 1}]
    withs = "with a as (" * DEEPEST_WITH + "select 1 as one" + ") from a" * DEEPEST_WITH
    assert here.rows(withs) == [{"one": 1}]
    zoned = "select " + ", ".join(
        [f"('2026-01-01'::timestamp with time zone) is null as n{each}" for each in range(20)]
    )
    assert len(here.rows(zoned)[0]) == 20
