"""Asking a cluster on which no job was ever started."""

from __future__ import annotations

import pytest
from distributed import Client, LocalCluster

import flowstate as fs


def test_a_cluster_without_jobs_says_so() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        pytest.raises(fs.Unavailable, match=r"no flowstate job has been started on this cluster; use fs\.start"),
    ):
        fs.attach(client=client)
