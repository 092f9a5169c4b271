"""SQL over live views: DuckDB in the asker's process, its columns and filters pushed into the partitions.

`catalog` gives DuckDB a `pyarrow.dataset.Dataset` per view with nothing behind it but Flight, and `keyed` makes a lookup of a scan for a
few keys; `pushdown` reads from DuckDB's own syntax tree which views a query names; `tiers` says where a query is computed, `partial`
computes parts, `key_values` keeps what these compute of keys alone; `session` is the locked-down DuckDB around them, `served` many of them
for others; `attach` puts the views into the user's own.
"""

from __future__ import annotations

from flowstate_sql.attach import Attached, attach, detach
from flowstate_sql.session import Session

__all__ = ["Attached", "Session", "attach", "detach"]
