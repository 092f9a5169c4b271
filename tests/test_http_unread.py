"""Subscribers that do not read: what each of them may hold of a view that is larger than that."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from hand_job import HandJob
from waiting import until

import flowstate_flight.changes
from flowstate.view.changes import Change
from flowstate_flight.client import FlightReader
from flowstate_flight.subscribing import MESSAGE_BYTES, pieces, read_change
from flowstate_http.events import PIECE_BYTES, event

KEYS, UNREAD = 150_000, 20
NOTE = "n" * 80


@pytest.fixture(scope="module")
def job() -> Iterator[HandJob]:
    with HandJob() as job:
        job.append("a", [(f"customer-{number:06d}", 10, number % 100, NOTE) for number in range(KEYS)])
        yield job


def subscribe(port: int) -> socket.socket:
    asking = socket.create_connection(("127.0.0.1", port), timeout=60)
    asking.sendall(b"GET /views/totals/changes HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return asking


def read_to_position(asking: socket.socket) -> int:
    """Bytes until all rows are told."""
    size, tail = 0, b""
    while b"event: position" not in tail:
        got = asking.recv(1 << 20)
        assert got
        size, tail = size + len(got), (tail + got)[-(1 << 20) - 100 :]
    return size


def test_a_client_that_does_not_read_costs_a_few_megabytes_whatever_the_view_holds(job: HandJob) -> None:
    program = [
        sys.executable,
        str(Path(__file__).with_name("http_gateway.py")),
        *(each.location for each in job.services),
    ]
    with (
        subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as gateway,
        contextlib.ExitStack() as stack,
    ):
        try:
            assert gateway.stdout is not None
            port, process = int(gateway.stdout.readline()), psutil.Process(gateway.pid)
            with subscribe(port) as first:
                whole = read_to_position(first)  # what is loaded and compiled once is there by now
            before = process.memory_info().rss
            for _ in range(UNREAD):
                stack.enter_context(subscribe(port))
            with subscribe(port) as reading:
                assert read_to_position(reading) > 0.9 * whole  # who reads is not held up by them
            grown = (process.memory_info().rss - before) / UNREAD
            assert whole > 30 << 20
            assert grown < 8 << 20, f"{grown / 2**20:.1f} MiB each"
        finally:
            gateway.kill()


def test_a_subscription_that_is_not_read_fetches_no_further(job: HandJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched is noted where messages come in, each partition's in a thread of its own (so two could not add to one number)."""
    fetched, original = list[int](), read_change

    def counted(rows: pa.RecordBatch, metadata: bytes) -> Change:
        fetched.append(rows.nbytes)
        return original(rows, metadata)

    monkeypatch.setattr(flowstate_flight.changes, "read_change", counted)
    with FlightReader([each.location for each in job.services]) as reader, reader.changes("totals") as changes:
        rows = taken = 0
        while not rows:
            change = changes.take(10.0)
            assert change is not None
            rows, taken = change.rows.num_rows, change.rows.nbytes
        until(lambda: sum(fetched) > taken, says=stacks)
        until(lambda: not waits_for_more(fetched))  # a partition may begin later than the other
        assert sum(fetched) <= 4 * 2 * MESSAGE_BYTES < KEYS * len(NOTE)
        while (found := changes.take(10.0)) is not None and (rows < KEYS or found.kind != "position"):
            assert found.rows.nbytes <= 2 * MESSAGE_BYTES
            rows += found.rows.num_rows
        assert rows == KEYS


def stacks() -> str:
    """What all threads of this process do; the services of the job are among them."""
    return "\n".join(
        f"thread {number}\n{''.join(traceback.format_stack(frame))}" for number, frame in sys._current_frames().items()
    )


def waits_for_more(fetched: list[int]) -> bool:
    """Whether more comes within half a second."""
    before = len(fetched)
    with contextlib.suppress(AssertionError):
        until(lambda: len(fetched) > before, 0.5)
        return True
    return False


def change_of(count: int, resume: object = None) -> Change:
    rows = pa.record_batch({"who": [f"{number}" for number in range(count)], "note": [NOTE] * count})
    return Change("rows", 1, rows, resume=resume)


@pytest.mark.parametrize("count", [0, 1, 10, 20_000])
def test_an_event_in_pieces_is_one_event(count: int) -> None:
    with ThreadPoolExecutor(1) as writing:
        texts = list(event(change_of(count, "token"), ["who"], writing))
    assert len(texts) >= count * len(NOTE) // PIECE_BYTES
    assert max(map(len, texts)) < 4 * PIECE_BYTES
    head, data = b"".join(texts).removesuffix(b"\n\n").split(b"data: ")
    assert head == b"id: token\nevent: rows\n" and b"\n" not in data
    told = json.loads(data)
    assert told["partition"] == 1 and [each["who"] for each in told["rows"]] == [f"{each}" for each in range(count)]


def test_messages_are_small_and_lose_nothing() -> None:
    change = change_of(20_000)
    parts = list(pieces(change))
    assert len(parts) > 4 and max(each.rows.nbytes for each in parts) < 2 * MESSAGE_BYTES
    assert pa.Table.from_batches([each.rows for each in parts]).combine_chunks().to_batches()[0] == change.rows
    assert {(each.kind, each.partition) for each in parts} == {("rows", 1)}
    whole = change_of(20_000, {"splits": {}})  # where it can be gone on from is said of all of it
    assert list(pieces(whole)) == [whole]
    assert [each.rows.num_rows for each in itertools.chain(pieces(change_of(0)), pieces(change_of(3)))] == [0, 3]
