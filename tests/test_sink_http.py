"""The HTTP sink against a real service in another process: each row counts once, whoever dies, stalls or refuses."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from http_receiver import Receiver, Service

from flowstate.errors import CorruptData, FlowstateError, InvalidFlow, Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import EPOCH, REVISION, SinkSpec
from flowstate.sink import Sink, Stage, make_sink
from flowstate.sink import http as http_sink
from flowstate.sink.http import HttpSink
from flowstate.sink.rejected import reject, rejected
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.retention import retain, retire_generations
from flowstate.store import Store
from flowstate.testing.conformance_sink import CHANGES_CHECKS, CHECKS, SinkUnderTest

SCHEMA = pa.schema({"customer": pa.string(), "n": pa.int64()})
SECRET = {"Authorization": "Bearer hunter2"}

CHILD = """
import os, pickle, signal, sys
spec, store, staged, step, at = pickle.load(sys.stdin.buffer)
from flowstate.sink.http import HttpSink
seen = []
def reached(name):
    seen.append(name)
    if name == step and seen.count(name) == at:
        os.kill(os.getpid(), signal.SIGKILL)
sink = HttpSink(spec, reached=reached)
for each in staged:
    sink.publish(store, each)
"""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path / "taken.jsonl")
    receiver.start()
    yield receiver
    receiver.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "snapshots")


def spec(
    receiver: Receiver, path: str = "/rows", mode: Any = "append", keys: tuple[str, ...] = (), **options: Any
) -> SinkSpec:
    options = {"headers": SECRET, "patience": 3, "timeout": 3, **options}
    return SinkSpec("http", "totals", receiver.url + path, mode=mode, keys=keys, options=options)


def rows(first: int, count: int = 20) -> pa.Table:
    these = range(first * 1000, first * 1000 + count)
    return pa.table({"customer": [f"c{n % 3}" for n in these], "n": list(these)}, schema=SCHEMA)


def prepared(sink: HttpSink, store: Store, first: int, count: int = 20, partition: int = 0) -> Sequence[StagedOutput]:
    return sink.prepare(Stage(store, f"g0001/p{partition:04d}", partition, 1, first), rows(first, count))


def taken(receiver: Receiver) -> Counter[int]:
    return Counter(row["n"] for row in receiver.rows)


def expected(*firsts: int, but: Sequence[int] = ()) -> Counter[int]:
    return Counter(n for first in firsts for n in rows(first)["n"].to_pylist() if n not in but)


def refused(make: Callable[[], Any], kind: type[FlowstateError] = InvalidFlow) -> str:
    with pytest.raises(kind) as caught:
        make()
    shown = str(caught.value) + repr(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
    assert "hunter2" not in shown
    return str(caught.value)


def crash_points(sink: Sink, step: Callable[[str], None]) -> None:
    assert isinstance(sink, HttpSink)
    sink._reached = step


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[SinkUnderTest], None], batch: int, receiver: Receiver, store: Store) -> None:
    made = spec(receiver, connections=1, batch=batch)
    check(
        SinkUnderTest(
            lambda: HttpSink(made), store, lambda: receiver.rows, crash_points, whole=False, deaths=10, histories=2
        )
    )


@pytest.mark.parametrize("check", CHANGES_CHECKS, ids=lambda check: check.__name__)
def test_conformance_of_changes(check: Callable[[SinkUnderTest], None], receiver: Receiver, store: Store) -> None:
    made = spec(receiver, mode="changes", keys=("kind",))
    check(SinkUnderTest(lambda: HttpSink(made), store, lambda: receiver.rows, crash_points, whole=False))


def test_a_row_is_a_request(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver, "/invoices/{customer}/{month}?n={n}", method="PUT"))
    schema = pa.schema(
        {"customer": pa.string(), "month": pa.timestamp("ms", "UTC"), "total": pa.decimal128(12, 2), "n": pa.int64()}
    )
    table = pa.table(
        {"customer": ["an/na ?", "ä"], "month": [0, 1], "total": [Decimal("1.50"), None], "n": [1, 2]}, schema=schema
    )
    sink.check(schema)
    (staged,) = sink.prepare(Stage(store, "g0001/p0003", 3, 5, 12), table)
    assert sink.publish(store, staged) == 0
    first, second = sorted(receiver.taken, key=lambda each: str(each["key"]))
    assert (first["method"], first["path"]) == ("PUT", "/invoices/an%2Fna%20%3F/1970-01-01T00%3A00%3A00.000Z?n=1")
    assert second["path"].startswith("/invoices/%C3%A4/")
    assert first["body"] == '{"customer":"an/na ?","month":"1970-01-01T00:00:00.000Z","total":1.50,"n":1}'
    assert first["headers"]["content-type"] == "application/json"
    assert first["headers"]["authorization"] == "Bearer hunter2"
    identity = store.read("sinks/0000/identity").decode()
    assert [each["key"] for each in (first, second)] == [f"{identity}-p0003-g0001-e000005-000012-0-{n}" for n in (0, 1)]


def test_rows_without_a_url_of_their_own_are_rejected(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver, "/invoices/{customer}"))
    table = pa.table({"customer": ["anna", None, "", "..", "null"], "n": range(5)})
    (staged,) = sink.prepare(Stage(store, "g0001/p0000", 0, 1, 1), table)
    assert sink.publish(store, staged) == 3
    assert {each["path"] for each in receiver.taken} == {"/invoices/anna", "/invoices/null"}
    assert [json.loads(each)["n"] for each in rejected(store)["row"].to_pylist()] == [1, 2, 3]


def test_batches_keep_their_keys_when_their_size_is_changed(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver, batch=8))
    (staged,) = prepared(sink, store, 1)
    sink.publish(store, staged)
    assert sorted(len(json.loads(each["body"])) for each in receiver.taken) == [4, 8, 8]
    HttpSink(spec(receiver, batch=5)).publish(store, staged)
    assert taken(receiver) == expected(1)


def test_rows_that_change_are_in_order_per_key(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver, mode="changes", keys=("customer",), connections=8))
    schema = pa.schema([*SCHEMA, pa.field(EPOCH, pa.int64()), pa.field(REVISION, pa.int64())])
    for save in range(1, 4):
        twice = 2 if save == 2 else 1  # a key may be in one save twice
        names = [f"c{number}" for number in range(12)] * twice
        revisions = [10 * save + each // 12 for each in range(12 * twice)]
        table = pa.table(
            {"customer": names, "n": range(12 * twice), EPOCH: [7] * 12 * twice, REVISION: revisions}, schema=schema
        )
        for staged in sink.prepare(Stage(store, "g0001/p0000", 0, 1, save), table):
            sink.publish(store, staged)
    held: dict[str, int] = {}
    for each in receiver.taken:
        row = json.loads(each["body"])
        assert each["headers"]["flowstate-epoch"] == "7"
        assert each["headers"]["flowstate-revision"] == str(row[REVISION])
        assert row[REVISION] > held.get(row["customer"], 0)
        held[row["customer"]] = row[REVISION]
    assert set(held.values()) == {30} and len(receiver.taken) == 48


def test_each_row_counts_once_when_publishers_are_killed_at_every_step(receiver: Receiver, store: Store) -> None:
    receiver.behave(refused=[4003, 5001], refusal=422)
    steps = [("send", 1), ("send", 3), ("answered", 2), ("reject", 1), ("done", 1)]
    # The last one sends batches.
    sinks = [HttpSink(spec(receiver, batch=6 if number == 5 else 1)) for number in range(1, 6)]
    staged = [prepared(sink, store, number) for number, sink in enumerate(sinks, 1)]

    def die(sink: HttpSink, objects: Sequence[StagedOutput], step: str, at: int) -> None:
        data = pickle.dumps((sink.spec, store, objects, step, at))
        done = subprocess.run([sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()

    with ThreadPoolExecutor(3) as pool:
        each = zip(sinks, staged, steps, strict=True)
        for died in [pool.submit(die, sink, objects, *step) for sink, objects, step in each]:
            died.result()
    for _ in range(2):
        for sink, objects in zip(sinks, staged, strict=True):
            for one in objects:
                HttpSink(sink.spec).publish(store, one)
    gone = [4003, *range(5000, 5006)]
    assert taken(receiver) == expected(1, 2, 3, 4, 5, but=gone)
    assert [json.loads(each)["n"] for each in rejected(store)["row"].to_pylist()] == gone


def test_many_publishers_at_once(receiver: Receiver, store: Store) -> None:
    sinks = [HttpSink(spec(receiver)) for _ in range(3)]
    staged = prepared(sinks[0], store, 1, 100)
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(sink.publish, store, each) for sink in sinks * 2 for each in staged]:
            assert done.result() == 0
    assert taken(receiver) == Counter(range(1000, 1100))


@pytest.mark.parametrize(
    "behaviour",
    [
        {"do": "status", "status": 500, "times": 5},
        {"do": "status", "status": 503, "times": 2, "headers": {"Retry-After": "1"}},
        {"do": "status", "status": 429, "times": 2, "headers": {"Retry-After": "soon"}},
        {"do": "status", "status": 425, "times": 1},
        {"do": "status", "status": 409, "times": 2},
        {"do": "taken", "status": 502, "times": 5},
        {"do": "cut", "times": 3},
        {"do": "cut head", "times": 3},
        {"do": "slow", "seconds": 1.5, "times": 2},
    ],
    ids=lambda each: "-".join(str(value) for value in list(each.values())[:2]),
)
def test_what_passes_is_tried_again(receiver: Receiver, store: Store, behaviour: dict[str, Any]) -> None:
    sink = HttpSink(spec(receiver, timeout=0.5, patience=10))
    (staged,) = prepared(sink, store, 1)
    receiver.behave(**behaviour)
    began = time.monotonic()
    assert sink.publish(store, staged) == 0
    if behaviour.get("headers") == {"Retry-After": "1"}:
        assert time.monotonic() - began >= 1
    assert taken(receiver) == expected(1)
    asked, repeats = receiver.counts
    assert asked == 20 + behaviour["times"]
    assert repeats == (behaviour["times"] if behaviour["do"] != "status" else 0)


def test_what_does_not_pass_is_unavailable_and_goes_on_where_it_was(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver, patience=0.5, connections=1))
    (staged,) = prepared(sink, store, 1)
    receiver.behave(do="status", status=503, times=10**6, headers={"Retry-After": "77"})
    began = time.monotonic()
    with pytest.raises(Unavailable, match="503") as caught:
        sink.publish(store, staged)
    assert time.monotonic() - began < 5
    assert caught.value.retry_after == 77
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    receiver.behave(do="status", status=503, times=1, headers={"Retry-After": date})
    with pytest.raises(Unavailable) as caught:
        sink.publish(store, staged)
    assert 50 < caught.value.retry_after <= 100
    receiver.behave(refused=[1010], refusal=500)
    with pytest.raises(Unavailable, match="500"):
        sink.publish(store, staged)
    before, _ = receiver.counts
    receiver.behave()
    assert sink.publish(store, staged) == 0
    asked, repeats = receiver.counts
    assert (asked - before, repeats) == (10, 0)
    assert taken(receiver) == expected(1)


def test_a_service_that_is_down_and_comes_back(receiver: Receiver, store: Store) -> None:
    steps: list[str] = []

    def reached(step: str) -> None:
        steps.append(step)
        if steps.count("answered") == 8 and step == "answered":
            receiver.kill()

    sink = HttpSink(spec(receiver, patience=3.0), reached=reached)
    (staged,) = prepared(sink, store, 1)
    assert "refused" in refused(lambda: sink.publish(store, staged), Unavailable)
    assert 0 < len(receiver.rows) < 20
    receiver.start()
    # Another one knows nothing of what was sent.
    HttpSink(sink.spec).publish(store, staged)
    assert sink.publish(store, staged) == 0
    assert taken(receiver) == expected(1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_certificates_are_verified(tmp_path: Path, store: Store) -> None:
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    pem, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", pem]
    subprocess.run([*make, *names], check=True, capture_output=True, timeout=60)
    service = Service(0, tmp_path / "taken.jsonl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    service.socket = context.wrap_socket(service.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    try:

        def sink(**options: Any) -> HttpSink:
            url = f"https://localhost:{service.server_port}/rows"
            options = {"connections": 1, "headers": SECRET, **options}
            return HttpSink(SinkSpec("http", "totals", url, mode="append", options=options))

        (staged,) = prepared(sink(), store, 1)
        assert "not trusted" in refused(lambda: sink().publish(store, staged))
        assert service.taken == {}
        assert sink(ca_file=pem).publish(store, staged) == 0
        assert len(service.taken) == 20
    finally:
        service.shutdown()
        service.server_close()
        thread.join(10)
        service.log.close()


def test_close_ends_a_wait(receiver: Receiver, store: Store) -> None:
    waiting = threading.Event()
    sink = HttpSink(spec(receiver, patience=60), reached=lambda step: waiting.set() if step == "answered" else None)
    (staged,) = prepared(sink, store, 1)
    receiver.behave(do="status", status=500, times=10**6)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(sink.publish, store, staged)
        assert waiting.wait(10)
        sink.close()
        with pytest.raises(Unavailable):
            publishing.result(10)
    receiver.behave()
    assert sink.publish(store, staged) == 0


def test_rejected_rows_are_kept_with_their_reasons(receiver: Receiver, store: Store) -> None:
    sinks = [HttpSink(spec(receiver, connections=3), sink=number) for number in (0, 1)]
    staged = [prepared(sink, store, first, partition=first)[0] for sink in sinks for first in (1, 2)]
    receiver.behave(refused=[1002, 1007, 2001], refusal=410)
    for sink, each in zip([0, 0, 1, 1], staged, strict=True):
        assert sinks[sink].publish(store, each) == (2 if each.path.startswith("g0001/p0001") else 1)
    found = rejected(store)
    assert found.select(["sink", "partition"]).to_pylist() == [
        {"sink": sink, "partition": partition} for sink in (0, 1) for partition in (1, 1, 2)
    ]
    assert found["row"].to_pylist()[:3] == [
        '{"customer":"c0","n":1002}', '{"customer":"c2","n":1007}', '{"customer":"c0","n":2001}'
    ]  # fmt: skip
    assert all(each.startswith("http 410: no such invoice xxx") for each in found["reason"].to_pylist())
    assert max(map(len, found["reason"].to_pylist())) <= 210
    # It was published: what the service says now changes nothing.
    receiver.behave()
    asked, _ = receiver.counts
    assert sinks[0].publish(store, staged[0]) == 2
    assert receiver.counts == (asked, 0)
    # Two publishers that were told different things: each row once.
    table = rows(1)
    reject(store, staged[0], table, {2: "http 410", 4: "http 400"})
    reject(store, staged[0], table, {2: "http 410", 4: "http 400"})
    assert [json.loads(each)["n"] for each in rejected(store)["row"].to_pylist()[:3]] == [1002, 1007, 1004]
    assert rejected(Store.open(store.url + "-none")).num_rows == 0


def test_retention_keeps_rejected_rows_and_identities(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver))
    (staged,) = prepared(sink, store, 1)
    receiver.behave(refused=[1002])
    sink.publish(store, staged)
    before = rejected(store)
    assert before.num_rows == 1
    identity = store.read("sinks/0000/identity")
    chain = PartitionChain(store, 1, 0)
    epoch = chain.claim()
    later = sink.prepare(Stage(store, "g0001/p0000", 0, epoch.epoch + 5, 1), rows(2))
    manifest = Manifest(epoch.version + 1, epoch.epoch, None, tuple(later), {})
    assert chain.commit(epoch.version, manifest) is not None
    retain(store, 1, [0], keep=1)
    retire_generations(store, 2, 0)
    assert rejected(store).equals(before)
    assert store.read("sinks/0000/identity") == identity


@pytest.mark.parametrize(
    ("status", "said"), [(301, "not followed"), (307, "not followed"), (401, "alike"), (404, "alike"), (405, "alike")]
)
def test_what_is_not_about_a_row_rejects_none(receiver: Receiver, store: Store, status: int, said: str) -> None:
    sink = HttpSink(spec(receiver))
    (staged,) = prepared(sink, store, 1)
    receiver.behave(do="status", status=status, times=10**6, headers={"Location": f"{receiver.url}/elsewhere"})
    assert said in refused(lambda: sink.publish(store, staged))
    assert rejected(store).num_rows == 0
    receiver.behave()
    assert sink.publish(store, staged) == 0
    assert taken(receiver) == expected(1)
    assert {each["path"] for each in receiver.taken} == {"/rows"}


def test_what_was_staged_and_is_damaged_or_gone_is_named(receiver: Receiver, store: Store) -> None:
    sink = HttpSink(spec(receiver))
    (one,), (two,) = prepared(sink, store, 1), prepared(sink, store, 2)
    whole = store.read(one.path)
    store.delete(one.path)
    store.create(one.path, whole[:-1])
    store.delete(two.path)
    assert one.path in refused(lambda: sink.publish(store, one), CorruptData)
    assert two.path in refused(lambda: sink.publish(store, two), CorruptData)
    assert receiver.rows == []


def test_large_saves_are_several_objects(receiver: Receiver, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_sink, "PART_ROWS", 30)
    sink = HttpSink(spec(receiver, batch=10))
    staged = prepared(sink, store, 1, 100)
    assert [each.rows for each in staged] == [30, 30, 30, 10]
    for each in pickle.loads(pickle.dumps(staged)):
        pickle.loads(pickle.dumps(sink)).publish(store, each)
    assert taken(receiver) == Counter(range(1000, 1100))


def test_what_cannot_work_is_told_at_the_start(tmp_path: Path) -> None:
    def check(url: str = "https://billing/rows", schema: pa.Schema = SCHEMA, **options: Any) -> None:
        make_sink(SinkSpec("http", "totals", url, mode="append", options=options)).check(schema)

    check()
    check("http://[::1]:8080/{customer}?x={n}")
    assert "did you mean 'customer'" in refused(lambda: check("https://billing/{custmer}"))
    assert "http://" in refused(lambda: check("ftp://billing"))
    assert "no URL" in refused(lambda: check("https://billing:hunter2/"))
    assert "no URL" in refused(lambda: check("https://billing/hunter2/{"))
    assert "headers=" in refused(lambda: check("https://anna:hunter2@billing/"))
    assert "not in the host" in refused(lambda: check("https://{customer}/hunter2"))
    assert "percent-encode" in refused(lambda: check("https://billing/hunter2 x"))
    assert "can name no columns" in refused(lambda: check("https://billing/{n}", batch=2))
    assert "did you mean 'headers'" in refused(lambda: check(header={}))
    assert "printable" in refused(lambda: check(headers={"Authorization": "hunter2\r\nX: 1"}))
    assert "set by the sink" in refused(lambda: check(headers={"idempotency-key": "hunter2"}))
    assert "no name" in refused(lambda: check(headers={"a b": "hunter2"}))
    assert "POST, PUT" in refused(lambda: check(method="GET"))
    assert "above zero" in refused(lambda: check(batch=0))
    assert "above zero" in refused(lambda: check(timeout=-1))
    assert "PEM" in refused(lambda: check(ca_file=str(tmp_path / "none.pem")))
    assert "no JSON" in refused(lambda: check(schema=pa.schema({"m": pa.map_(pa.string(), pa.string())})))
    sink = HttpSink(SinkSpec("http", "totals", "https://billing", mode="append", options={"headers": SECRET}))
    assert "hunter2" not in repr(sink)
