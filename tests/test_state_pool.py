"""Memory of chunks is used again: a view costs copies, and no new memory from the second one on."""

from __future__ import annotations

import pytest
from test_state_table import money, money_table

from flowstate.state.block import Block, Pool


@pytest.mark.parametrize("keys", [50, 300, 5000])
def test_the_second_view_of_a_table_costs_no_new_memory(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first chunk has grown: the blocks that it has left behind take no room from those that are in use."""
    table = money_table(chunk_rows=1024)
    names = [f"c{number}" for number in range(keys)]
    for first in range(0, keys, 40):
        table.apply(money(names[first : first + 40], [1] * len(names[first : first + 40])))
    made: list[int] = []
    fresh = Pool.fresh

    def counted(pool: Pool, size: int) -> Block:
        made.append(size)
        return fresh(pool, size)

    monkeypatch.setattr(Pool, "fresh", counted)
    for number in range(4):
        view = table.view()
        table.apply(money(names, [1] * keys))
        assert len(made) == (keys + 1023) // 1024, f"view {number}"
        rows = sum(each.num_rows for each in view.batches())
        view.release()
        del view
        assert rows == keys
    own = 100_000 if keys < 3000 else 230_000  # a table that divides has room for that
    assert table.memory()["other"] < table.memory()["columns"] * 1.1 + own
