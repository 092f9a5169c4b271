"""The only place that wires the rooms together.

`partition` (with `reading`, `owning` and `prepare`) and `coordinator` are pure machines: events in, instructions out. `pump` is the
thread that drives a partition, `saving` what it does on the side, `link` carries streams between processes, `host` is what a worker
process has of flowstate, `actor` the thin handle that Dask sees, `supervisor` the scheduler's side.
"""
