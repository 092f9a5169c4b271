"""Every boundary refuses what is from another incarnation, and says both numbers: which one was meant, and which one is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from flight_memory import MemoryPartition
from pyarrow import flight

from flowstate.errors import Fenced, FlowstateError, Moved
from flowstate.plan.position import NEVER, Floor, Place
from flowstate.runtime.coordinator import Coordinator
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.running import RunningJob
from flowstate.runtime.supervisor import failure
from flowstate.snapshot.job_record import JobChain
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecords
from flowstate.store import Store
from flowstate.testing.adversity.log import simple_plan
from flowstate.view.directory import Directory, PartitionInfo, ViewInfo
from flowstate_flight.fault import from_flight
from flowstate_flight.server import FlightService
from flowstate_flight.ticket import Ticket

VIEW = ViewInfo("totals", pa.schema([("who", pa.string())]), keys=("who",), routing_keys=("who",))


def served(epoch: int) -> MemoryPartition:
    return MemoryPartition("job", 0, epoch, {"totals": VIEW}, {"totals": pa.table({"who": ["anna"]})})


def told(kind: type[FlowstateError], ask: Callable[[], object]) -> dict[str, Any]:
    with pytest.raises(kind) as refused:
        ask()
    return dict(refused.value.facts)


@pytest.mark.parametrize("asked", [3, 5])
def test_a_ticket(asked: int) -> None:
    with FlightService() as service:
        service.set_directory(Directory("job", 1, 0, 128, {"totals": VIEW}, (PartitionInfo(0, 4, service.location),)))
        service.register(served(4))

        def ask() -> object:
            with flight.connect(service.location) as client:
                try:
                    return client.do_get(flight.Ticket(Ticket("job", "totals", 0, epoch=asked).to_bytes())).read_all()
                except flight.FlightError as error:
                    raise from_flight(error) from error

        facts = told(Moved, ask)
        assert (facts["asked"], facts["serving"]) == (asked, 4)


@pytest.mark.parametrize("asked", [3, 5])
def test_a_lookup_on_an_open_exchange(asked: int) -> None:
    with FlightService() as service, flight.connect(service.location) as client:
        service.set_directory(Directory("job", 1, 0, 128, {"totals": VIEW}, (PartitionInfo(0, 4, service.location),)))
        service.register(served(4))
        command = json.dumps({"v": 1, "kind": "lookup", "job": "job", "view": "totals"}).encode()
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command))
        with writer:
            writer.begin(pa.schema([("who", pa.string())]))
            keys = pa.record_batch({"who": ["anna"]})
            writer.write_with_metadata(keys, json.dumps({"partition": 0, "epoch": asked, "id": 1}).encode())
            error = json.loads(reader.read_chunk().app_metadata.to_pybytes())["error"]
            assert (error["kind"], error["facts"]["asked"], error["facts"]["serving"]) == ("Moved", asked, 4)
            writer.done_writing()


def test_serving() -> None:
    with FlightService() as service:
        service.register(served(4))
        assert told(Fenced, lambda: service.register(served(3))) == {"partition": 0, "epoch": 3, "served": 4}


def test_a_manifest(tmp_path: Path) -> None:
    chain = PartitionChain(Store.open(str(tmp_path)), 1, 0)
    older, newer = chain.claim(), chain.claim()
    assert chain.commit(older.version, Manifest(0, older.epoch)) is None
    assert chain.commit(newer.version, Manifest(0, newer.epoch)) is not None
    facts = told(Fenced, lambda: chain.claim(older.epoch))
    assert (facts["epoch"], facts["newest"]) == (1, 2)


def test_a_split_record(tmp_path: Path) -> None:
    records = SplitRecords(Store.open(str(tmp_path)))
    records.raise_epoch("split")
    records.raise_epoch("split")
    for write in (
        lambda: records.append_floor("split", 1, Floor(3, 4)),
        lambda: records.set_end("split", 9, 1),
        lambda: records.raise_epoch("split", epoch=1),
    ):
        facts = told(Fenced, write)
        assert (facts["epoch"], facts["newest"]) == (1, 2)
    record = records.load("split")
    assert record is not None and record.floors == () and record.end is None


def test_a_split_that_a_newer_run_has_taken(tmp_path: Path) -> None:
    """A request of the run before it, which was under way for long, may come before it, and not after."""
    records = SplitRecords(Store.open(str(tmp_path)))
    assert records.raise_epoch("split", run=5).reader_epoch == 1
    assert records.raise_epoch("split", run=6).reader_epoch == 2
    facts = told(Fenced, lambda: records.raise_epoch("split", run=5, floor=Floor(3, 4)))
    assert (facts["run"], facts["newest"]) == (5, 6)
    record = records.load("split")
    assert record is not None and (record.reader_epoch, record.floors, record.run) == (2, (), 6)
    assert records.raise_epoch("split", run=6).reader_epoch == 3


def test_a_run(tmp_path: Path) -> None:
    jobs = JobChain(Store.open(str(tmp_path)))
    for _ in range(2):
        jobs.claim_run(
            name="job", plan={}, fingerprint="x", partitions=1, key_groups=8, seed=1, created=0.0, origin=None
        )
    assert told(Fenced, lambda: jobs.check(1)) == {"run": 1, "newest": 2}
    jobs.check(2)


def test_a_claim_of_a_replaced_run_that_was_under_way_begins_no_incarnation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be above the newer run's epoch, and save by a table that lacks what the newer run has found since."""
    store = Store.open(str(tmp_path))
    claim = PartitionChain.claim

    def newer_run() -> None:
        JobChain(store).claim_run(name="job", plan={}, fingerprint="x", partitions=1, key_groups=8, seed=1, created=0.0)

    def overtaken(chain: PartitionChain, **options: Any) -> Manifest:
        newer_run()
        return claim(chain, **options)

    newer_run()
    job: Any = SimpleNamespace(store=store, spec=JobSpec("job", simple_plan(None), str(tmp_path), run=1))
    assert RunningJob._claim_epoch(job, 0) == 1
    monkeypatch.setattr(PartitionChain, "claim", overtaken)
    assert told(Fenced, lambda: RunningJob._claim_epoch(job, 0)) == {"run": 1, "newest": 2}


def test_numbers_survive_the_way_to_the_driver() -> None:
    data = failure(Fenced("a newer run of this job has taken over", run=1, newest=2))
    assert data["error"] == {
        "kind": "Fenced",
        "message": "a newer run of this job has taken over",
        "facts": {"run": 1, "newest": 2},
    }


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_report(epoch: int) -> None:
    """Of a replaced incarnation, or of one that this supervisor knows nothing of: it changes nothing."""
    machine = Coordinator(1, {})
    machine.worker_joined("w", "grpc://w", 0.0)
    machine.claimed(0, 2, 0.0)
    said = {"state": "live", "position": {"a": Place(9, 9)}, "reached": NEVER}
    assert machine.reported(0, epoch, said, 0.0) == [] and machine.members[0].state == "starting"
    assert machine.create_failed(0, epoch, "no memory", 0.0) == []
