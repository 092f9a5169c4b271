"""Which partition a row goes to.

Rows of a keyed table go to the owner of their key's group; rows of an append table go to the owner of their split, all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes, split_owner


class Router:
    """Splits batches by owner. Stable: the rows of one owner keep their order."""

    def __init__(self, *, partitions: int, groups: int, seed: int) -> None:
        self.partitions, self.groups, self.seed = partitions, groups, seed
        self._owner_of_group = owner_of_groups(np.arange(groups), groups, partitions)

    def owners(self, columns: Sequence[pa.Array]) -> np.ndarray:
        """The owner of each row, from its routing keys."""
        return owner_of_groups(key_groups(route_hashes(columns, self.seed), self.groups), self.groups, self.partitions)

    def owner_of_split(self, split: str) -> int:
        return split_owner(split, self.seed, self.groups, self.partitions)

    def split(self, batch: pa.RecordBatch, routing_keys: Sequence[str]) -> dict[int, pa.RecordBatch]:
        """Owner -> its rows, for the owners that have any. A batch of one owner is passed on as it is."""
        if batch.num_rows == 0:
            return {}
        if self.partitions == 1:
            return {0: batch}
        from flowstate.plan.encoding import order_by_owner  # numba: only where rows are routed

        hashes = route_hashes([batch.column(name) for name in routing_keys], self.seed, rows=batch.num_rows)
        order, room = np.empty(batch.num_rows, np.int32), np.empty(self.partitions + 1, np.int64)
        order_by_owner(hashes, self._owner_of_group, room, order)
        counts = room[:-1].tolist()
        if batch.num_rows in counts:
            return {counts.index(batch.num_rows): batch}
        sorted_rows = batch.take(pa.array(order))
        parts, at = {}, 0
        for owner, count in enumerate(counts):
            if count:
                parts[owner] = sorted_rows.slice(at, count)
                at += count
        return parts
