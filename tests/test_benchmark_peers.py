"""Systems that a benchmark compares find the same in the same rows."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from benchmarks import nexmark
from benchmarks.keyed_state import billing
from benchmarks.memory_peers import by_duckdb, by_flowstate, by_numbers, by_polars
from benchmarks.peers import build
from benchmarks.peers.running import System
from flowstate.errors import Unavailable

ROWS, GROUPS = 30_000, 2_000
BUILT = "Java's peers are fetched and compiled first, about a minute: set FLOWSTATE_TEST_PEERS=1 to run this"


def test_totals_in_memory_agree_to_the_cent() -> None:
    table = billing(ROWS, GROUPS)
    connection = duckdb.connect(config={"threads": 1})
    expected = by_duckdb(table, connection).found
    assert expected[0] > GROUPS * 0.9 and expected[1] == ROWS and expected[2] > 0
    assert by_flowstate(table.to_batches(max_chunksize=4096)).found == expected
    assert by_polars(table)().found == expected


@pytest.mark.parametrize("name", list(nexmark.QUERIES))
def test_a_partition_answers_a_nexmark_query_as_duckdb_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bids.arrow"
    nexmark.generate(path, 20_000, seed=3)
    query = nexmark.QUERIES[name]
    *_, found = nexmark.ours(query, path, tmp_path / "snapshots")
    *_, expected = nexmark.theirs(query, path)
    assert expected.num_rows > 5
    assert nexmark.equal(found, expected)
    first = expected.column_names[-1]
    wrong = expected.set_column(expected.num_columns - 1, first, pa.array([0] * expected.num_rows))
    assert not nexmark.equal(found, wrong)


def test_a_program_that_gives_no_result_is_named_with_what_it_said() -> None:
    system = System("broken", ["python3", "-c", "import sys; sys.exit('no room')"])
    with pytest.raises(Unavailable, match=r"(?s)broken.*no room"):
        system.run()
    system.close()


@pytest.mark.skipif(not os.environ.get("FLOWSTATE_TEST_PEERS"), reason=BUILT)
def test_flink_finds_what_duckdb_finds(tmp_path: Path) -> None:
    table = billing(ROWS, GROUPS)
    by_numbers(table, tmp_path / "rows")
    said = ["input=memory", f"events={ROWS}", f"rows={tmp_path / 'rows'}", f"customers={GROUPS // 2}"]
    flink = System("flink", ["java", "-cp", build.class_path("flink"), "FlinkPeer", *said])
    try:
        assert flink.run().found == by_duckdb(table, duckdb.connect()).found
    finally:
        flink.close()
