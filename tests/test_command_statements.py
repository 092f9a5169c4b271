"""What is typed at the prompt: where statements end, where a mistake is, what may come next."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstate.command.completion import Words
from flowstate.command.statements import is_complete, locate, split

TABLES = {
    "codes": pa.schema({"code": pa.int64(), "total": pa.decimal128(12, 2)}),
    "months": pa.schema({"customer": pa.string(), "total": pa.int64()}),
    "flowstate_views": pa.schema({"view": pa.string()}),
}
#: Pieces of SQL that have no end of a statement in them, though some look so.
PIECES = st.sampled_from(
    [
        "select 1",
        " ",
        "\n",
        "';'",
        "'it''s;'",
        '"a;b"',
        "$$;$$",
        "$x$;$$;$x$",
        "-- no; end\n",
        "/* ; */",
        "x",
        ".5",
        "é",
    ]
)


@given(st.lists(st.lists(PIECES, min_size=1, max_size=6), min_size=1, max_size=4))
def test_statements_end_at_semicolons_that_are_in_nothing_else(statements: list[list[str]]) -> None:
    texts = ["".join(["s ", *each]) for each in statements]
    found, rest = split("".join(f"{each};" for each in texts))
    assert found == [each.strip() for each in texts]
    assert rest == ""
    assert split("".join(f"{each};" for each in texts[:-1]) + texts[-1]) == (found[:-1], texts[-1])


@pytest.mark.parametrize(
    ("typed", "complete"),
    [
        ("", True),
        ("select 1", False),
        ("select 1;", True),
        ("select 1; -- that was it", True),
        ("select 1; select", False),
        ("select ';", False),
        (".schema codes", True),
        ("select 1\n.5;", True),
    ],
)
def test_when_nothing_is_to_be_typed_any_more(typed: str, complete: bool) -> None:
    assert is_complete(typed) is complete


@pytest.mark.parametrize(
    ("query", "message", "place"),
    [
        ("selec 1", 'syntax error at or near "selec"', ("selec 1", 0, 5)),
        ("select 1,\n cod from codes", 'Referenced column "cod" not found in FROM clause!', (" cod from codes", 1, 3)),
        ("select 'é', cod from codes", 'Referenced column "cod" not found in FROM clause!', (None, 12, 3)),
        (
            "select sum(customer) from months",
            "No function matches the given name and argument types 'sum(VARCHAR)'.",
            (None, 7, None),
        ),
        ("from codez", "Table with name codez does not exist!", ("from codez", 5, 5)),
        ("select 1", "the query was cancelled", None),
        ("from codez", "something else is wrong", None),
    ],
)
def test_where_the_mistake_is(query: str, message: str, place: tuple[str | None, int, int | None] | None) -> None:
    found = locate(query, message, TABLES)
    if place is None:
        assert found is None
        return
    assert found is not None
    line, before, length = place
    assert found.line == (line or query)
    assert found.before == before
    assert length in (None, found.length)


@pytest.mark.parametrize(
    ("typed", "expected", "absent"),
    [
        ("select * from co", ["codes"], ["code", "count"]),
        ("select co", ["code", "codes", "count", "collate"], []),
        ("select cust| from codes", [], ["customer"]),
        ("select tot| from months", ["total"], []),
        ("select m.| from months m", ["customer", "total"], ["code", "codes"]),
        ("SELECT COAL", ["COALESCE"], ["coalesce"]),
        ("select getenv", [], ["getenv"]),
        (".sch", [".schema"], []),
        (".schema mon", ["months"], []),
        (".mode j", ["json"], []),
    ],
)
def test_what_may_come_next(typed: str, expected: list[str], absent: list[str]) -> None:
    text, _, rest = typed.partition("|")
    found = [each.text for each in Words(TABLES).after(text, text + rest)]
    assert set(expected) <= set(found)
    assert not set(absent) & set(found)
