"""Saved states as a reader has them at hand: the newest, also of what is damaged or divided anew; and who waits for whom."""

from __future__ import annotations

import math
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import waiting
from distributed import Client, LocalCluster

import flowstate as fs
from flowstate.api.finding import saved_states
from flowstate.api.job import Reads
from flowstate.clock import SystemClock
from flowstate.runtime.saved_states import SavedStates
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store
from flowstate.view.answer import Answer
from flowstate.view.freshness import Freshness
from flowstate.view.saved import Saved
from flowstate_flight import FlightReader

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64()})
NAMES = [f"customer-{each}" for each in range(30)]
until = partial(waiting.until, seconds=30.0)


def holds(job: Reads, events: int) -> bool:
    return bool(sum(job.to_table("totals")["total"].to_pylist()) == events)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Snapshots of a job of two partitions that stopped after 300 events, was started again, and stopped after 600; and the first ones."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "log").mkdir()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        for run in (1, 2):
            lines = [f'{{"customer": "{NAMES[(each + run) % 30]}", "amount": 1}}\n' for each in range(300)]
            (folder / "log" / f"{run}.jsonl").write_text("".join(lines))
            events = fs.scan_files(f"{folder}/log/*.jsonl", schema=SCHEMA, follow=True)
            view = events.group_by("customer").agg(total=fs.col("amount").sum()).view("totals")
            with fs.start(view, snapshots=folder / "snapshots", client=client, partitions=2) as job:
                until(partial(holds, job, 300 * run))
            if run == 1:
                shutil.copytree(folder / "snapshots", folder / "first")
    return folder / "snapshots", folder / "first"


@pytest.fixture
def place(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "snapshots"))


def states_of(place: Path) -> SavedStates:
    return SavedStates(Store.open(place), SystemClock())


def found(states: SavedStates, partition: int, view: str = "totals", oldest: float = -math.inf) -> Saved:
    def known() -> Saved | None:
        each = states.find(partition, view, oldest)
        return each if each.part is not None or each.trouble is not None else None

    return until(known)


def total(states: SavedStates, partition: int) -> int:
    part, trouble = (known := found(states, partition)).part, known.trouble
    assert part is not None, trouble
    _, batches, _ = part.scan("totals")
    return int(sum(sum(each.column("total").to_pylist()) for each in batches))


def newest_segments(place: Path, partition: int) -> list[Path]:
    manifest = PartitionChain(Store.open(place), 1, partition).load()
    assert manifest is not None
    assert manifest.state is not None
    return [place / each.segment for each in manifest.state.tables["totals"]]


def test_the_newest_state_answers(place: Path) -> None:
    states = states_of(place)
    assert total(states, 0) + total(states, 1) == 600
    directory = states.directory()
    assert [each.location for each in directory.partitions] == [None, None]
    assert directory.version == 2 << 32
    known = found(states, 0)
    assert known.partitions == 2
    assert known.as_of is not None
    assert known.as_of <= time.time()
    assert states.find(0, "totals", -math.inf).part is known.part  # loaded once


def test_what_is_too_old_is_not_loaded(place: Path) -> None:
    states = states_of(place)
    known = until(lambda: (each := states.find(0, "totals", math.inf)).as_of and each)
    assert known.part is None
    assert found(states, 0, oldest=known.as_of).part is not None


def test_a_newer_state_is_found(made: tuple[Path, Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(made[1], tmp_path / "snapshots"))
    states = states_of(place)
    assert total(states, 0) + total(states, 1) == 300
    shutil.copytree(made[0], place, dirs_exist_ok=True)
    until(lambda: total(states, 0) + total(states, 1) == 600)


def test_damage_makes_the_one_before_answer_and_is_named(made: tuple[Path, Path], place: Path) -> None:
    earlier = states_of(made[1])
    segments = newest_segments(place, 0)
    for each in segments:
        each.write_bytes(b"\0" * each.stat().st_size)
    states = states_of(place)
    shared = {each.name for each in newest_segments(made[1], 0)} & {each.name for each in segments}
    if shared:  # nothing older is whole
        assert isinstance(found(states, 0).trouble, fs.CorruptData)
    else:
        assert total(states, 0) == total(earlier, 0)
        assert segments[0].name in states.damaged[0, "totals"]
        assert found(states, 0).as_of == found(earlier, 0).as_of
    assert total(states, 1) + total(earlier, 0) > 0


def test_a_store_that_goes_away_leaves_what_is_loaded(place: Path) -> None:
    states = states_of(place)
    before = total(states, 0)
    place.rename(place.with_name("gone"))
    until(lambda: states.find(0, "totals", -math.inf).trouble is not None)
    known = states.find(0, "totals", -math.inf)
    assert known.part is not None
    assert total(states, 0) == before
    assert isinstance(found(states, 1).trouble, fs.InvalidFlow)
    with FlightReader(lambda: _nobody(place.with_name("gone")), saved=states, patience=0.6) as reader:
        refused = "cannot be read either.*saved=.no job has ever saved anything here.*live='this partition is being"
        with pytest.raises(fs.Unavailable, match=refused):
            reader.scan("totals", partitions=[1])


def _nobody(place: Path) -> Any:
    return states_of(place).directory()


def test_reads_of_a_job_that_is_down(place: Path) -> None:
    reader = FlightReader([], saved=saved_states(str(place), {}), grace=0.2)
    with Reads(reader) as reads:
        begun = time.monotonic()
        for name in NAMES:
            table = reads["totals"][name]
            assert table["total"].to_pylist() == [20]
            answer = Answer.of(table.schema)
            assert answer is not None
            assert [part.origin for part in answer.parts] == ["saved"]
            assert answer.parts[0].position
        assert time.monotonic() - begun < 5.0  # grace is paid once for each partition, not by each read
        assert reads.sql(
            "select sum(total)::bigint from totals where customer in ('customer-1', 'customer-2')"
        ).fetchall() == [(40,)]
        with pytest.raises(KeyError):
            reads["totals"]["nobody"]
        assert len(reads["totals"]) == 30
        with pytest.raises(fs.InvalidFlow, match="max_age is a number"):
            reads.sql("select 1", max_age="1h")  # type: ignore[arg-type]


def test_many_threads_load_once(place: Path) -> None:
    states = states_of(place)
    parts: list[int] = []
    threads = [threading.Thread(target=lambda: parts.append(id(found(states, 0).part))) for _ in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(parts) == 16
    assert len(set(parts)) == 1


def test_a_cut_is_gone_with_a_partition_that_kept_it(tmp_path: Path) -> None:
    """The directory names a newer incarnation than the one that kept the cut: nobody waits for it, and nothing else is read for it."""
    from flight_memory import directory_of, partitions_of
    from flight_tables import TABLES, VIEWS

    from flowstate_flight import FlightService

    with FlightService() as service:
        partitions = partitions_of("billing", VIEWS, TABLES, 2)
        for each in partitions:
            each.cuts[7] = dict(each.tables)
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * 2))
        with FlightReader(service.location) as reader:
            reader.keep_cut({"cut": 7})
            rows = reader.scan("subtotals", fresh=Freshness(cut=7)).num_rows
            assert rows == TABLES["subtotals"].num_rows
            for each in partitions_of("billing", VIEWS, TABLES, 2, epoch=2):
                service.register(each)
            service.set_directory(directory_of("billing", VIEWS, [service.location] * 2, version=2, epoch=2))
            begun = time.monotonic()
            with pytest.raises(fs.Unavailable, match=r"was lost since it was made.*cut=7"):
                reader.scan("subtotals", fresh=Freshness(cut=7))
            assert time.monotonic() - begun < 3.0
