"""Item counts: how often was each item bumped? A million events, 46,656 possible items, any of them answered by key.

Run it: python examples/01_counts.py [number of events]
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import flowstate as fs

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", np.uint8)


def bumps(number: int, seed: int = 1) -> pa.Table:
    """`number` events of a user who bumps an item: three random characters, lower-cased, so that digits are the rarer ones."""
    random = np.random.default_rng(seed)
    text = LETTERS[random.integers(0, len(LETTERS), size=(number, 3))].tobytes()
    items = pa.Array.from_buffers(
        pa.string(), number, [None, pa.py_buffer(np.arange(0, 3 * number + 1, 3, dtype=np.int32)), pa.py_buffer(text)]
    )
    return pa.table(
        {"user": pa.array(random.integers(0, 2**31 - 1, size=number), pa.int32()), "item": pc.utf8_lower(items)}
    )


def main(number: int = 1_000_000) -> int:
    table = bumps(number)
    counts = fs.from_arrow(table).group_by("item").agg(count=fs.len()).view("item_counts")

    with tempfile.TemporaryDirectory() as folder, fs.start(counts, snapshots=folder) as job:
        job.wait(timeout=120)

        for item in ("abc", "foo", "xyz"):
            began = time.perf_counter()
            count = job["item_counts"][item]["count"][0].as_py()
            print(f"{item}: {count} (query took {1000 * (time.perf_counter() - began):.1f} ms)")

        query = "select count(*) as items, sum(count) as bumps, max(count) as most from item_counts"
        items, total, most = job.sql(query).fetchall()[0]
        print(f"{total} bumps of {items} items, at most {most} of one")

        right = table.group_by("item").aggregate([([], "count_all")])
        live = job.sql("select item, count from item_counts").to_arrow_table()
        agree = dict(zip(*live.to_pydict().values(), strict=True)) == dict(
            zip(*right.to_pydict().values(), strict=True)
        )
        print("every count is right" if agree else "counts are WRONG")
    return 0 if agree else 1


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(*map(int, sys.argv[1:])))
