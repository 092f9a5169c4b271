"""A job whose workers ask everybody for a certificate, and each other: it runs, recovers and is read, and nobody comes in without one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from certificates import Authority
from dask_processes import pids
from hand_job import Told, ordered_rows
from local_cluster import two_workers
from pyarrow import flight

import flowstate as fs
from flowstate.errors import InvalidFlow

CUSTOMERS = [f"customer-{each}" for each in range(30)]
SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64()})


def test_a_job_with_mutual_tls_runs_recovers_and_is_read(tmp_path: Path) -> None:
    authority, strangers = Authority(), Authority("strangers")
    certificate, key = authority.sign("workers.example.org")
    tls = fs.Tls(certificate, key, authority.certificate, authority.certificate, "workers.example.org")
    boss, hashed = fs.Access.make_token()
    mine = {"actions": ["read", "sql"], "views": ["totals"], "rows": {"customer": "customer-7"}}
    access = fs.Access(
        {
            "principals": {
                "anna": {"certificates": ["anna.example.org"], "grants": [mine]},
                "boss": {
                    "tokens": [hashed],
                    "certificates": ["boss.example.org"],
                    "grants": [{"actions": ["read", "sql"]}],
                },
            }
        }
    )
    logs, sent = [tmp_path / f"{name}.jsonl" for name in "ab"], 0

    def append(rows: int) -> None:
        nonlocal sent
        for at, log in enumerate(logs):
            with log.open("a") as file:
                for each in range(sent + at, sent + rows, 2):
                    file.write(json.dumps({"customer": CUSTOMERS[each % 30], "amount": each}) + "\n")
        sent += rows

    def shows(signer: Authority, name: str, **options: Any) -> dict[str, Any]:
        chain, private = signer.sign(name)
        return {"cert_chain": chain, "private_key": private} | options

    def reads(**shown: Any) -> Any:
        return fs.connect(job.address, **({"patience": 20.0} | trusted(authority) | shown))

    def expected() -> dict[str, int]:
        return {name: sum(range(at, sent, 30)) for at, name in enumerate(CUSTOMERS)}

    def caught_up() -> None:
        deadline = time.monotonic() + 60
        while sum(job.to_table("totals")["rows"].to_pylist()) != sent:
            assert time.monotonic() < deadline, job.status()

    def found(view: Any) -> dict[str, int]:
        table = view.to_table()
        return dict(zip(table["customer"].to_pylist(), table["total"].to_pylist(), strict=True))

    append(300)
    events = fs.scan_files(tmp_path / "*.jsonl", schema=SCHEMA, follow=True)
    totals = events.group_by("customer").agg(rows=fs.len(), total=fs.col("amount").sum()).view("totals")
    with (
        two_workers() as client,
        fs.start(
            totals, snapshots=tmp_path / "saved", every="300ms", client=client, partitions=2, access=access, tls=tls
        ) as job,
    ):
        caught_up()
        assert job.address.startswith("grpc+tls://")
        annas, bosses = shows(authority, "anna.example.org"), shows(authority, "boss.example.org")
        with reads(**annas) as hers, reads(**bosses) as whole, fs.attach(client=client) as attached:
            table = Told(["customer"])

            def told(changes: Any, at: int) -> None:
                deadline, settled = time.monotonic() + 60, False
                while not settled or sum(row["rows"] for row in table.rows()) != at:
                    assert time.monotonic() < deadline
                    change = changes.take(1.0)
                    if change is not None:
                        table.take(change)
                        settled = change.kind == "position"

            def all_ways() -> None:
                """Lookups, scans, cuts, and SQL in each tier."""
                assert found(whole["totals"]) == found(attached["totals"]) == expected()
                assert whole["totals"]["customer-3"]["total"].to_pylist() == [expected()["customer-3"]]
                assert whole.sql("select sum(rows), sum(total) from totals").fetchall() == [
                    (sent, sum(expected().values()))
                ]
                assert whole.sql("select median(rows) from totals").fetchall() == [(sent / 30,)]
                with whole.snapshot() as cut:
                    assert found(cut["totals"]) == expected()
                assert found(hers["totals"]) == {"customer-7": expected()["customer-7"]}
                assert hers["totals"]["customer-7"]["total"].to_pylist() == [expected()["customer-7"]]
                assert hers.sql("select count(*), sum(total) from totals").fetchall() == [(1, expected()["customer-7"])]
                with pytest.raises(KeyError):
                    hers["totals"]["customer-8"]

            all_ways()
            with whole["totals"].changes() as changes:
                told(changes, sent)
                os.kill(pids(client)[job.status()["partitions"]["0"]["worker"]], signal.SIGKILL)
                append(300)
                told(changes, sent)
            caught_up()
            assert ordered_rows(table.rows()) == ordered_rows(job.to_table("totals").to_pylist())
            all_ways()
            with reads(token=boss, **annas) as by_token:  # a token counts before the certificate
                assert len(found(by_token["totals"])) == 30
            with fs.gateway(job.address, tls=tls, token=boss, access=access) as gateway:
                with fs.connect(gateway.address, **annas, **trusted(authority)) as through:
                    assert found(through["totals"]) == {"customer-7": expected()["customer-7"]}
                with pytest.raises(fs.Unavailable):
                    fs.connect(gateway.address, patience=1.0, **trusted(authority))

        refused = {
            "no certificate": {},
            "no certificate, with a token": {"token": boss},
            "that of another authority": shows(strangers, "boss.example.org"),
            "that of another authority, with a token": shows(strangers, "boss.example.org", token=boss),
        }
        for shown in refused.values():
            begun = time.monotonic()
            with pytest.raises(fs.Unavailable):
                reads(patience=1.0, **shown)
            assert time.monotonic() - begun < 10
        with pytest.raises(InvalidFlow, match="refused these credentials"):
            reads(**shows(authority, "stranger.example.org"))
        with pytest.raises(fs.Unavailable):
            fs.connect(job.address.replace("grpc+tls://", "grpc://"), patience=1.0)
        for view in ("totals", "nothing"):
            with flight.connect(job.address, **trusted(authority)) as plain, pytest.raises(flight.FlightError):
                plain.get_flight_info(flight.FlightDescriptor.for_path(view), flight.FlightCallOptions(timeout=5))


def trusted(authority: Authority) -> dict[str, Any]:
    return {"tls_root_certs": authority.certificate, "override_hostname": "workers.example.org"}
