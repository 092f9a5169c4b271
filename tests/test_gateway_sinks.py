"""How sinks are doing, by SQL, for whoever reads a job without running it: told by its workers, and while it is down by what it saved."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distributed import Client
from hand_job import HandJob
from pyarrow import flight
from waiting import until

import flowstate as fs
from flowstate.api.sink_status import sink_status
from flowstate_flight.client import FlightReader
from flowstate_flight.gateway import Gateway

OPERATOR, READER = fs.Access.make_token(), fs.Access.make_token()
ACCESS = {
    "principals": {
        "operator": {"tokens": [OPERATOR[1]], "grants": [{"actions": ["read", "sql", "control"]}]},
        "reader": {"tokens": [READER[1]], "grants": [{"actions": ["read", "sql"]}]},
    }
}
QUERY = "select * from flowstate_sinks order by sink, partition"


def asked(gateway: Gateway, token: str) -> list[dict[str, Any]] | None:
    """By HTTP; None where there is no such table."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int((gateway.http_address or "").rpartition(":")[2]), timeout=20
    )
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection.request("POST", "/sql", json.dumps({"query": QUERY}), headers)
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    if response.status != 200:
        assert "no view 'flowstate_sinks'" in said["error"]["message"], said
        return None
    rows: list[dict[str, Any]] = said["rows"]
    return rows


def told(address: str, token: str) -> dict[str, Any]:
    """What a worker says of itself."""
    options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
    with flight.connect(address) as client:
        [result] = client.do_action(flight.Action("status", b""), options)
    found: dict[str, Any] = json.loads(result.body.to_pybytes())["jobs"]["sinking"]
    return found


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL where nobody listens, and nobody else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/rows?token=secret"


def test_sinks_at_a_gateway(client: Client, tmp_path: Path, nobody: str) -> None:
    log, snapshots = tmp_path / "log", tmp_path / "snapshots"
    log.mkdir()
    lines = [f'{{"customer": "customer-{each % 20}", "amount": {each}}}\n' for each in range(400)]
    (log / "0.json").write_text("".join(lines))
    schema = pa.schema({"customer": pa.string(), "amount": pa.int64()})
    events = fs.scan_files(str(log / "*.json"), schema=schema, follow=True)
    outputs = [
        events.group_by("customer").agg(total=fs.col("amount").sum()).view("totals"),
        events.sink_parquet(tmp_path / "out", roll_after="1h"),
        events.sink_http(nobody, timeout="1s", patience="1s"),
    ]
    access = fs.Access(ACCESS)
    with (
        fs.start(
            *outputs, snapshots=snapshots, every="200ms", client=client, partitions=2, access=access, name="sinking"
        ) as job,
        fs.gateway(snapshots=snapshots, access=access, token=OPERATOR[0], http_port=0) as gateway,
        fs.gateway(snapshots=snapshots, access=access, token=READER[0], http_port=0) as unprivileged,
    ):
        until(lambda: sum(job.to_table("totals")["total"].to_pylist()) == sum(range(400)), 60.0)
        until(lambda: any(each["problem"] for each in asked(gateway, OPERATOR[0]) or ()), 30.0)

        until(lambda: {each["origin"] for each in asked(gateway, OPERATOR[0]) or ()} == {"live"}, 20.0)
        rows = asked(gateway, OPERATOR[0])
        assert rows is not None
        assert [(each["sink"], each["partition"], each["kind"]) for each in rows] == [
            (0, 0, "parquet"), (0, 1, "parquet"), (1, 0, "http"), (1, 1, "http"),
        ]  # fmt: skip
        assert {(each["origin"], each["mode"], each["as_of"]) for each in rows} == {("live", "append", None)}
        assert rows[0]["url"] == str(tmp_path / "out")
        assert "secret" not in json.dumps(rows)
        until(lambda: sum(each["waiting"] for each in asked(gateway, OPERATOR[0]) or ()) > 0, 20.0)
        until(lambda: sum(each["open"] for each in asked(gateway, OPERATOR[0]) or ()) > 0, 20.0)
        with fs.connect(job.address, token=OPERATOR[0]) as reads:
            live = "select count(*) from flowstate_sinks where origin = 'live'"
            until(lambda: reads.sql(live).fetchall() == [(4,)], 20.0)

        until(lambda: all(each["report"]["snapshot"]["version"] > 1 for each in job.status()["partitions"].values()))
        assert asked(gateway, READER[0]) is None
        assert set(told(job.address, OPERATOR[0])) == {"directory", "partitions", "sinks"}
        assert set(told(job.address, READER[0])) == {"directory", "partitions"}
        with fs.connect(job.address, token=READER[0]) as reads:
            assert reads.sql("select count(*) from flowstate_sinks").fetchall() == [(0,)]
        fallen = asked(unprivileged, OPERATOR[0]) or []
        assert {each["origin"] for each in fallen} == {"saved"}, "who may not ask the workers knows what was saved"

        job.stop()
        until(lambda: {each["origin"] for each in asked(gateway, OPERATOR[0]) or ()} == {"saved"}, 30.0)
        rows = asked(gateway, OPERATOR[0]) or []
        assert [(each["sink"], each["partition"], each["kind"], each["view"]) for each in rows[2:]] == [
            (1, each, "http", rows[2]["view"]) for each in range(2)
        ]
        assert {(each["url"], each["rejected"], each["problem"]) for each in rows} == {(None, None, None)}
        assert sum(each["waiting"] for each in rows[2:]) > 0
        assert sum(each["waiting_bytes"] for each in rows[2:]) > 0
        assert all(each["as_of"] for each in rows)
        assert asked(gateway, READER[0]) is None
    with fs.open_snapshot(snapshots) as saved:
        assert saved.sql("select count(*) from flowstate_sinks").fetchall() == [(0,)], "a moment of the views alone"
    with fs.connect(snapshots=snapshots) as reads:  # nobody runs it any more
        assert reads.sql("select distinct origin from flowstate_sinks").fetchall() == [("saved",)]


def test_sinks_of_a_partition_that_moved_are_told_from_where_it_is() -> None:
    """To a reader who reads nothing else, and so learns of no move by another read."""
    with HandJob() as job, FlightReader([each.location for each in job.services]) as reader:

        def epochs() -> dict[str, list[int]]:
            for number, service in enumerate(job.services):
                service.set_sinks_handler(
                    lambda number=number: {("hand", number): [{"epoch": job.pumps[number].epoch}]}
                )
            told = sink_status(reader, None)["partitions"]
            return {number: [sink["epoch"] for sink in each["report"]["sinks"]] for number, each in told.items()}

        assert epochs() == {"0": [1], "1": [1]}
        job.move(1)
        assert epochs() == {"0": [1], "1": [2]}
