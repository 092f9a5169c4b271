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
        owners = self.owners([batch.column(name) for name in routing_keys])
        counts = np.bincount(owners, minlength=self.partitions)
        present = np.flatnonzero(counts)
        if len(present) == 1:
            return {int(present[0]): batch}
        width = np.uint8 if self.partitions <= 256 else np.uint16
        order = np.argsort(owners.astype(width), kind="stable")  # radix sort at these widths
        sorted_rows = batch.take(pa.array(order))
        parts, at = {}, 0
        for owner in present:
            parts[int(owner)] = sorted_rows.slice(at, int(counts[owner]))
            at += int(counts[owner])
        return parts
