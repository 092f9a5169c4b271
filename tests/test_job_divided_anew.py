"""A job that is started again with another number of partitions, on the workers that it had, and a reader from before."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from distributed import Client, LocalCluster

import flowstate as fs
from flowstate.runtime.job_spec import JobSpec
from flowstate_flight.client import connect

KEYS = [f"key-{number}" for number in range(40)]


@pytest.mark.parametrize("told_apart", [True, False])
def test_a_reader_from_before_asks_no_partition_for_keys_that_it_has_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_apart: bool
) -> None:
    """Epochs of a new division begin again with 1; where readers cannot tell them apart, keys are missing (which this test finds)."""
    if not told_apart:
        monkeypatch.setattr(JobSpec, "served_epoch", lambda self, epoch: epoch)
    events = fs.from_arrow(pa.table({"key": KEYS}))
    view = events.group_by("key").agg(rows=fs.len()).view("totals")
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with fs.start(view, snapshots=tmp_path, client=client, partitions=2, every="200ms") as job:
            job.wait(60)
            reader = connect(job.address, grace=0.5)
            assert sorted(reader.scan("totals")["key"].to_pylist()) == sorted(KEYS)
        with reader, fs.start(view, snapshots=tmp_path, client=client, partitions=3, every="200ms") as job:
            assert job.status()["generation"] == 2
            found = {key for key in KEYS if reader.lookup("totals", key).num_rows}
            assert (found == set(KEYS)) == told_apart
            assert (sorted(reader.scan("totals")["key"].to_pylist()) == sorted(KEYS)) == told_apart
