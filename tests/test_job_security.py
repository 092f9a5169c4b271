"""A job whose workers let in only who may, over TLS: its own processes work as ever, and others see what is theirs."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from certificates import Authority
from distributed import Client, LocalCluster
from pyarrow import flight
from waiting import until

import flowstate as fs
from flowstate.errors import InvalidFlow
from flowstate_sql.session import Session

PASSWORD = "correct horse battery"
CUSTOMERS = [f"customer-{each}" for each in range(40)]
ROWS = [{"customer": CUSTOMERS[each % 40], "amount": each} for each in range(4000)]


def test_a_job_with_access_and_tls(client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows cross between its two workers, the supervisor pings them, cuts are made and saved; a stranger finds a closed door."""
    caplog.set_level(logging.DEBUG)
    authority = Authority()
    certificate, key = authority.sign("workers.example.org")
    tls = fs.Tls(certificate, key, authority.certificate, hostname="workers.example.org")
    anna, hashed = fs.Access.make_token()
    access = fs.Access(
        {
            "principals": {
                "anna": {
                    "tokens": [hashed],
                    "password": fs.Access.hash_password(PASSWORD),
                    "grants": [{"actions": ["read"], "views": ["totals"], "rows": {"customer": "customer-7"}}],
                }
            }
        }
    )
    log = tmp_path / "log"
    log.mkdir()
    for name in range(2):  # two files, so that both workers read, and each has rows for the other
        (log / f"{name}.json").write_text("".join(json.dumps(each) + "\n" for each in ROWS[name::2]))
    schema = pa.schema({"customer": pa.string(), "amount": pa.int64()})
    events = fs.scan_files(str(log / "*.json"), format="json", schema=schema)
    totals = events.group_by("customer").agg(total=fs.col("amount").sum(), rows=fs.len()).view("totals")
    counts = events.group_by("customer").agg(rows=fs.len()).view("counts")
    expected = {each: sum(row["amount"] for row in ROWS if row["customer"] == each) for each in CUSTOMERS}
    trusted = {"tls_root_certs": authority.certificate, "override_hostname": "workers.example.org"}

    with fs.start(
        totals, counts, snapshots=tmp_path / "snapshots", every="300ms", client=client, partitions=2, access=access, tls=tls
    ) as job:  # fmt: skip
        job.wait(timeout=60)
        table = job.to_table("totals")
        assert dict(zip(table["customer"].to_pylist(), table["total"].to_pylist(), strict=True)) == expected
        assert job["totals"]["customer-3"]["total"].to_pylist() == [expected["customer-3"]]
        assert job.sql("select sum(rows) from counts").fetchall() == [(4000,)]
        assert job.snapshot().to_table("totals").num_rows == 40
        until(lambda: job.status()["saved_cut"].get("number"), says=job.status)
        address = job.address
        assert address.startswith("grpc+tls://127.0.0.1:")

        with fs.attach(client=client)._reader as attached:
            assert attached.scan("totals").num_rows == 40
        for shown in ({"token": anna}, {"login": ("anna", PASSWORD)}):
            with fs.connect(address, **shown, **trusted) as reads:
                assert list(reads) == ["totals"]
                assert reads["totals"].to_table()["customer"].to_pylist() == ["customer-7"]
                assert reads["totals"]["customer-7"]["total"].to_pylist() == [expected["customer-7"]]
                with pytest.raises(KeyError):
                    reads["totals"]["customer-8"]
                with pytest.raises(InvalidFlow, match="no view 'counts'"):
                    reads["counts"]
                assert Session(reads._reader).sql("select count(*) from totals").fetchall() == [(1,)]
                assert reads.snapshot()["totals"].to_table()["customer"].to_pylist() == ["customer-7"]
        with pytest.raises(InvalidFlow, match="refused these credentials"):
            fs.connect(address, **trusted)
        with pytest.raises(fs.Unavailable):
            fs.connect(address, token=anna, patience=1.0)
        with flight.connect(address, **trusted) as plain, pytest.raises(flight.FlightUnauthenticatedError):
            list(plain.list_flights())

        with pytest.raises(InvalidFlow, match="serve a job already, with the access"):
            fs.start(counts, snapshots=tmp_path / "other", client=client, name="other", access="none")
        connecting = client.sync(client.scheduler.flowstate_request, operation="security")["ok"]["connecting"]
        internal = connecting["token"]
        shown = repr(job.status()) + repr(job) + repr(job.client) + caplog.text + repr(client.scheduler_info())

    secrets = [anna, PASSWORD, internal, hashed, key.decode().splitlines()[1]]
    for each in secrets:
        assert each not in shown
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or each.encode() not in file.read_bytes(), file
    assert any(file.is_file() for file in (tmp_path / "snapshots").rglob("*"))


def reached() -> str | None:
    """An address of this machine that others reach it by."""
    found = [each.address for them in psutil.net_if_addrs().values() for each in them if each.family == socket.AF_INET]
    return next((each for each in found if not each.startswith("127.")), None)


@pytest.mark.skipif(reached() is None, reason="this machine has no address but loopback")
def test_workers_that_others_reach_want_to_be_told_who_is_let_in(tmp_path: Path) -> None:
    """Before anything is started on them; and the same once it is said that everybody is."""
    view = fs.from_arrow(pa.table({"key": ["a", "b", "a"]})).group_by("key").agg(rows=fs.len()).view("counts")
    with (
        LocalCluster(
            n_workers=1, processes=False, host=reached(), protocol="tcp", memory_limit=0, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(
            InvalidFlow, match=r"give access=fs.Access.from_file.*access='none' says that it is meant so"
        ):
            fs.start(view, snapshots=tmp_path, client=client)
        assert client.sync(client.scheduler.flowstate_request, operation="jobs") is None
        with fs.start(view, snapshots=tmp_path, client=client, access="none") as job:
            job.wait(timeout=60)
            assert job.address.startswith(f"grpc://{reached()}:")
            assert job["counts"]["a"]["rows"].to_pylist() == [2]
            with flight.connect(job.address) as plain:
                assert b"counts" in [each.descriptor.path[1] for each in plain.list_flights()]
