"""A partition makes no long texts of short ones, whatever is asked: what DuckDB needs for them is outside of its limit of memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from flowstate.errors import InvalidFlow
from flowstate_sql.lengths import _SHORT, LONGEST_PARTIAL, LONGEST_VALUES
from flowstate_sql.locked import LOCKED
from flowstate_sql.partial import PartialQuery, answer_partial
from flowstate_sql.syntax import NotSplit, _functions

LENGTH = 1000
#: Expressions of about `LENGTH` bytes, or of a number, that a function may make much of.
ARGUMENTS = [
    *(f"repeat({each}, {LENGTH // length})" for each, length in [
        ("'a'", 1), ("'\"'", 1), ("'\\'", 1), ("'%'", 1), ("'é'", 2), ("'ß'", 2), ("'ﷺ'", 3), ("'İ'", 2), ("'a,'", 2),
        ("'10'", 2), ("'{\"'", 2),
    ]),
    f"repeat('a', {LENGTH})::blob", f"repeat(chr(0), {LENGTH})::blob", f"repeat('10', {LENGTH // 2})::bit",
    f"range({LENGTH // 8})", "{'a': repeat('b', 1000)}", "1000",
]  # fmt: skip

FURTHER = ["1000", f"repeat('a', {LENGTH})", f"range({LENGTH // 8})"]


@pytest.fixture(scope="module")
def plain() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config={**LOCKED}) as connection:
        yield connection


def test_no_function_of_a_partition_gives_much_more_than_it_takes(plain: duckdb.DuckDBPyConnection) -> None:
    """Each is called with whatever it accepts."""
    tried, longest = 0, dict[str, int]()
    for name in sorted(_functions()[0] & _SHORT):
        for count in (1, 2, 3):
            for given in itertools.product(ARGUMENTS, *[FURTHER if count < 3 else FURTHER[:1]] * (count - 1)):
                try:
                    found = plain.sql(f'select "{name}"({", ".join(given)}) as x').to_arrow_table()
                except (duckdb.Error, pa.ArrowException, ValueError):  # a message may be cut within a character
                    continue
                tried += 1
                longest[name] = max(longest.get(name, 0), found.nbytes - 3 * LENGTH * count)
    assert tried > 500
    assert {name: size for name, size in longest.items() if size > 2 * LENGTH} == {}


def ask(sql: str, values: dict[str, object] | None = None) -> list[dict[str, object]]:
    rows = pa.record_batch({"word": ["ab"] * 3000, "number": list(range(3000))})
    data = PartialQuery(sql, values or {}).to_text()
    schema, batches = answer_partial(rows.schema, iter([rows]), data)
    return pa.Table.from_batches(batches, schema).to_pylist()


def nested(before: str, after: str, times: int) -> str:
    return before * times + "word" + after * times


@pytest.mark.parametrize(
    "expression",
    [
        nested("replace(", ", 'a', 'aa')", 20),
        nested("regexp_replace(", r", '(.)', '\1\1', 'g')", 20),
        nested("hex(", ")", 25),
        nested("to_base64(encode(", "))", 40),
        nested("to_json(", ")", 30),
        nested("regexp_escape(", ")", 30),
        nested("array_to_string(string_split(", ", ''), 'xx')", 20),
        f"{nested('', '::blob::text', 12)}",
        " || ".join(["word"] * 300),
        f"concat({', '.join(['word'] * 1000)})",
        nested("reverse(", ")", 90),
        nested("concat(word, ", ", word)", 9),
        "lpad(word, 100000000, 'x')",
        "repeat(word, 100000000)",
        "array_to_string(list_value(word, word), repeat('x', 100000000))",
        f"damerau_levenshtein(concat(word, '{'x' * 3000}'), '{'y' * 3000}')",
        f"concat(word, '{'x' * LONGEST_PARTIAL}')",
        "concat_ws(word, range(100000))",
        "list_reduce(range(30), lambda x, y: x || x)",
        "format('{:>100000000}', word)",
        "printf('%100000000s', word)",
        "word.repeat(100000000)",
    ],
)
def test_a_partition_refuses_what_makes_long_texts(expression: str) -> None:
    with pytest.raises((InvalidFlow, NotSplit), match=r"ask for the rows|too long"):
        ask(f"select max(length({expression})) from __rows")


def test_a_partition_refuses_long_parameters() -> None:
    with pytest.raises(InvalidFlow, match="long parameters"):
        ask("select max(concat(word, $x)) as m from __rows", {"x": "x" * LONGEST_VALUES})
    assert ask("select max(concat(word, $x)) as m from __rows", {"x": "x" * 500}) == [{"m": "ab" + "x" * 500}]


def test_what_people_ask_is_computed() -> None:
    query = (
        "select upper(trim(word)) || '-' || coalesce(substr(word, 1, 1), '?') as w, concat(word, '/', number % 2) as n, count(*) as c "
        "from __rows where lower(word) like 'a%' and number::text::int + 1 > 0 group by 1, 2 order by 2"
    )
    assert ask(query) == [{"w": "AB-a", "n": "ab/0", "c": 1500}, {"w": "AB-a", "n": "ab/1", "c": 1500}]
