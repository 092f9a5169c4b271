"""Keyed state: what a partition knows, and how fast.

`KeyedTable` (table) keeps one row of aggregates per key. It is a pure machine: no threads, no clock; one caller at a time, who
serialises `apply`, `lookup` and `view` (the runtime has a gate for that). What must hold:

* `apply` folds a routed batch (see `plan.spec.TableSpec`) into the state. Order of rows, and how they are cut into batches, cannot
  matter (float sums: up to rounding). It never raises because of a value; a result that does not fit its type is an error of the
  reads that touch that row.
* `view()` costs microseconds, whatever the size; the view is immutable, and consistent over all columns. A chunk that a living
  view refers to is copied before it is next written (copy on write, pooled buffers).
* A chunk of a view has an `id` (stable while the table lives), and a `version` that changes whenever its content does: a snapshot
  writes the chunks whose version it has not written yet. `Chunk.state()` is the chunk as an Arrow RecordBatch of *physical* columns
  (keys, window, aggregate states), from which `restore` rebuilds the table, also with other rows filtered out (rescaling), also by
  merging several partitions' chunks. `TableView.batches()` gives *result* rows, as a query sees them.
* `lookup` finds rows by full key, or by all plain keys without the window, without scanning.
* `closed(after, upto)` of a view: result rows of the windows whose close time (end + grace, microseconds) is in ``(after, upto]``.
* A table that counts revisions (`TableSpec.counts_revisions`) can say what changed: `revisions()` of a view is a `Baseline`,
  `changed(since)` the result rows whose revision is not that of the baseline. Revisions are state: saved, restored and merged like any
  aggregate.
* `expire(upto)` drops the windows whose end + keep is at most `upto`, gives their memory back at once.

`AppendTable` (append) keeps rows as they came: newest `keep_rows` of each split, and the exact count of all.

`Watermarks` (watermark) keeps position, newest event time and floor per split, and tells the partition's watermark.
"""
