"""A gateway that may have so much memory and no more: a query that needs more ends it, and nothing beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from distributed import Client, LocalCluster
from pyarrow import flight
from waiting import until

import flowstate as fs
from flowstate_flight.flight_sql.messages import pack
from flowstate_flight.flight_sql.statements import Query
from flowstate_flight.protobuf import write

#: Gigabytes in one vector.
TOO_MUCH = "select sum(length(repeat(key, 1000000))) from totals"
ROWS = pa.table({"key": [f"k{each % 4000}" for each in range(8000)]})


def gateway(snapshots: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flowstate.command", "gateway", str(snapshots), "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(client: flight.FlightClient, query: str) -> pa.Table:
    handle = pack("TicketStatementQuery", write([(1, Query(query).handle())]))
    return client.do_get(flight.Ticket(handle)).read_all()


def test_a_query_that_takes_too_much_memory_ends_its_gateway_and_nothing_else(tmp_path: Path) -> None:
    view = fs.from_arrow(ROWS).group_by("key").agg(rows=fs.len()).view("totals")
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        fs.start(view, snapshots=tmp_path, every="200ms", client=client, partitions=2) as job,
    ):
        job.wait(60)
        processes = [gateway(tmp_path, "--memory", "600MB"), gateway(tmp_path)]
        try:
            first, second = map(address, processes)
            with flight.connect(first) as asks:
                assert ask(asks, "select sum(rows)::bigint as n from totals").to_pylist() == [{"n": 8000}]
                assert Path(f"/proc/{processes[0].pid}/oom_score_adj").read_text().strip() == "1000"
                with pytest.raises(flight.FlightError):
                    ask(asks, TOO_MUCH)
            until(lambda: processes[0].poll() is not None, 20.0)
            said = processes[0].communicate(timeout=10)[1]
            assert processes[0].returncode == 1
            held = int(said.partition("has ")[2].split()[0])
            assert 572 < held < 2000 and "MiB of memory, and may have 572; start it again" in said
            with fs.connect(second) as reads:
                assert reads.sql("select sum(rows) from totals").fetchall() == [(8000,)]
            assert job["totals"]["k7"]["rows"].to_pylist() == [2]
        finally:
            for each in processes:
                if each.poll() is None:
                    each.terminate()
                each.communicate(timeout=20)


@pytest.mark.parametrize(("memory", "message"), [("5MB", "needs more memory than that"), ("much", "memory")])
def test_what_is_no_limit_of_memory(tmp_path: Path, memory: str, message: str) -> None:
    process = gateway(tmp_path, "--memory", memory)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 2 and message in said and "Traceback" not in said
