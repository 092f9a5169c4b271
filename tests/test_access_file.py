"""The file of an access while services run: what is changed in it holds soon, and nothing that is broken opens or closes a door."""

from __future__ import annotations

import http.client
import json
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from guarded import HASHED, INTERNAL, PASSWORD
from hand_job import HandJob
from pyarrow import flight
from waiting import until

import flowstate as fs
import flowstate_http.app
from flowstate.clock import ManualClock
from flowstate_flight import FlightReader, auth
from flowstate_flight.gateway import Gateway
from flowstate_flight.ticket import Ticket
from flowstate_http import HttpService

ANNA, BERT, GATEWAY = fs.Access.make_token(), fs.Access.make_token(), fs.Access.make_token()


def text(*names: str, rows: str = "", more: str = "") -> str:
    """A file that lets in who is named."""
    hashes = {"anna": ANNA[1], "bert": BERT[1], "gateway": GATEWAY[1]}
    return more + "".join(
        f'[principals.{name}]\ntokens = ["{hashes[name]}"]\npassword = "{HASHED}"\n[[principals.{name}.grants]]\n'
        f'actions = ["read", "sql"]\n{rows if name == "anna" else ""}\n'
        for name in names
    )


class File:
    """The file, and a clock that stands still beside it."""

    def __init__(self, folder: Path, held: str) -> None:
        self.path = folder / "access.toml"
        self.path.write_text(held)
        self.age = 1000.0
        self.clock = ManualClock(self._dated(self.path))
        self.access = fs.Access.from_file(self.path, clock=self.clock)

    def _dated(self, path: Path) -> float:
        """Give a file a time of its own, in the past."""
        self.age -= 1
        now = time.time()
        os.utime(path, (now - self.age, now - self.age))
        return now

    def replace(self, held: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(held)
        self._dated(new)
        new.replace(self.path)

    def knows(self, token: str) -> bool:
        return self.access.of_token(token) is not None


def test_a_change_holds_at_the_next_look_and_there_is_one_a_second(tmp_path: Path) -> None:
    file = File(tmp_path, text("anna"))
    assert file.knows(ANNA[0])
    file.replace(text("bert"))
    file.clock.advance(0.9)
    assert file.knows(ANNA[0])
    assert not file.knows(BERT[0])
    file.clock.advance(0.2)
    assert not file.knows(ANNA[0])
    assert file.knows(BERT[0])
    before = file.access.fingerprint
    file.replace(text("anna", "bert"))
    file.clock.advance(1.1)
    assert file.access.fingerprint != before
    assert file.access.fingerprint == fs.Access.from_file(file.path).fingerprint


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """The first half of a grant is a grant of everything."""
    whole = text("anna", rows='rows = {who = "anna"}')
    file = File(tmp_path, whole)
    half = whole[: whole.index("rows")]
    file.path.write_text(half)  # now
    for _ in range(3):
        file.clock.advance(0.3 if file.clock.now < time.time() else 0.0)
        anna = file.access.of_token(ANNA[0])
        assert anna is not None
        assert anna.rows("totals") is not None
    file.path.write_text(whole.replace('"anna"}', '"bert"}'))
    file.clock.now = time.time() + 2.0  # two seconds later
    anna = file.access.of_token(ANNA[0])
    assert anna is not None
    assert "bert" in str(anna.rows("totals"))


def test_whose_rights_stay_stays_the_same(tmp_path: Path) -> None:
    file = File(tmp_path, text("anna", "bert", rows="rows = {closed = 1}"))
    anna, bert, login = (
        file.access.of_token(ANNA[0]),
        file.access.of_token(BERT[0]),
        file.access.login("bert", PASSWORD),
    )
    assert login is not None
    file.replace(text("anna", "bert", rows="rows = {closed = true}", more='login = "1h"\n'))
    file.clock.advance(1.1)
    assert file.access.of_token(BERT[0]) is bert
    assert file.access.of_token(login) is bert
    again = file.access.of_token(ANNA[0])
    assert again is not None
    assert again is not anna


BROKEN: dict[str, Callable[[Path], Any]] = {
    "no TOML": lambda path: path.write_text(f'tokens = ["{ANNA[1]}'),
    "no text": lambda path: path.write_bytes(b"\xff" * 10),
    "a field that is not known": lambda path: path.write_text(text("anna").replace("password", "pasword")),
    "no hash": lambda path: path.write_text(text("anna").replace(ANNA[1], ANNA[0])),
    "a value that is no value": lambda path: path.write_text(text("anna", rows=f"rows = {{n = {2**70}}}")),
    "nobody": lambda path: path.write_text(""),
    "no file": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_broken_changes_nothing_and_is_told_of_once(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = File(tmp_path, text("anna"))
    BROKEN[case](file.path)
    with caplog.at_level(logging.WARNING, "flowstate.access"):
        for _ in range(5):
            file.clock.now = max(file.clock.now, time.time()) + 2.0
            assert file.knows(ANNA[0])
            assert not file.knows(BERT[0])
    [warning] = caplog.records
    said = warning.getMessage()
    assert "the rights from before hold" in said
    for secret in (ANNA[0], ANNA[1][8:], HASHED, str(2**70)):
        assert secret not in said
    if file.path.is_dir():
        file.path.rmdir()
    file.replace(text("bert"))
    file.clock.advance(1.1)
    assert file.knows(BERT[0])
    assert not file.knows(ANNA[0])


def test_one_that_was_sent_elsewhere_follows_the_file_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = File(tmp_path, text("anna", "bert"))
    login = file.access.login("anna", PASSWORD)
    assert login is not None
    sent = pickle.dumps(file.access)
    file.replace(text("anna"))
    late = pickle.loads(sent)  # a worker that begins after the change
    assert late.of_token(BERT[0]) is None
    assert late.of_token(login).name == "anna"
    file.path.unlink()
    with caplog.at_level(logging.WARNING, "flowstate.access"):
        away = pickle.loads(sent)  # on a machine without the file
        assert away.of_token(BERT[0]).name == "bert"
    assert "FileNotFoundError" in caplog.text


class Served:
    """A job that lets in by a file, a gateway to it, and HTTP, all with the same file."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.path = path
        self.replace("anna", "bert")
        self.job = stack.enter_context(HandJob(access=fs.Access.from_file(path), internal=INTERNAL))
        self.job.append("a", [("anna", 10, 1, "x"), ("bert", 20, 2, "y")])
        locations = [each.location for each in self.job.services]
        access = fs.Access.from_file(path)
        reader = FlightReader(locations, token=INTERNAL)
        self.gateway = stack.enter_context(Gateway(reader, access=access))
        self.http = stack.enter_context(HttpService(reader, access=access))

    def replace(self, *names: str, rows: str = "") -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text(*names, rows=rows))
        old = time.time() - 100
        os.utime(new, (old, old))
        new.replace(self.path)

    def changes(self, client: flight.FlightClient, token: str, partition: int | None) -> Any:
        ticket = Ticket("hand", "totals", partition, changes=True).to_bytes()
        return client.do_get(flight.Ticket(ticket), shown(token))

    def status(self, token: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.http.port, timeout=20)
        connection.request("GET", "/views", headers={"authorization": f"Bearer {token}"})
        status = connection.getresponse().status
        connection.close()
        return status


def shown(token: str) -> flight.FlightCallOptions:
    return flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())], timeout=60)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for module in (auth, flowstate_http.app):
        monkeypatch.setattr(module, "AGAIN", 0.1)
    with ExitStack() as stack:
        yield Served(stack, tmp_path / "access.toml")


def listed(client: flight.FlightClient, token: str) -> int | None:
    """How many flights there are; None for who is not let in."""
    try:
        return len(list(client.list_flights(b"", shown(token))))
    except flight.FlightUnauthenticatedError:
        return None


def test_services_take_the_new_rights_and_end_the_streams_of_who_lost_them(served: Served) -> None:
    with (
        flight.connect(served.job.services[0].location) as worker,
        flight.connect(served.gateway.address) as gateway,
    ):
        ended = [served.changes(worker, BERT[0], 0), served.changes(gateway, BERT[0], None)]
        stays = [served.changes(worker, ANNA[0], 0), served.changes(gateway, ANNA[0], None)]
        for each in (*ended, *stays):
            each.read_chunk()
        events = http.client.HTTPConnection("127.0.0.1", served.http.port, timeout=20)
        events.request("GET", "/views/totals/changes", headers={"authorization": f"Bearer {BERT[0]}"})
        told = events.getresponse()
        assert told.status == 200

        served.replace("anna", "gateway")
        for client in (worker, gateway):
            until(lambda client=client: listed(client, BERT[0]) is None, 10)  # type: ignore[misc]
            assert listed(client, ANNA[0])
            assert listed(client, GATEWAY[0])
        until(lambda: served.status(BERT[0]) == 401, 10)
        assert (served.status(ANNA[0]), served.status(GATEWAY[0])) == (200, 200)

        for each in ended:
            with pytest.raises(flight.FlightUnauthenticatedError):
                each.read_all()
        last = told.read().decode().rstrip().rpartition("\n\n")[2]
        assert "event: failed" in last
        assert "not let in" in last
        events.close()
        for each in stays:  # hers go on
            for _ in range(10):
                each.read_chunk()
            each.cancel()


def test_an_exchange_ends_when_what_it_may_read_has_changed(served: Served) -> None:
    with flight.connect(served.job.services[0].location) as client:
        command = json.dumps({"v": 1, "kind": "lookup", "job": "hand", "view": "totals"})
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command), shown(ANNA[0]))
        keys = pa.record_batch({"who": ["anna"]})
        writer.begin(keys.schema)
        new = text("anna", rows='rows = {who = "nobody"}')
        served.path.write_text(new)

        said: list[str] = []

        def ended() -> bool:
            try:
                writer.write_with_metadata(keys, b'{"partition": 0, "id": 1}')
                assert "answer" in json.loads(reader.read_chunk().app_metadata.to_pybytes())
            except (flight.FlightError, pa.ArrowException, OSError) as error:
                said.append(str(error))
            return bool(said)

        until(ended, 15, pause=0.1)
        assert "what you may read has changed" in said[0]
        with suppress(flight.FlightError, pa.ArrowException, OSError):
            writer.close()


@pytest.mark.parametrize("gateway", [False, True])
def test_who_comes_back_with_other_rights_is_told_anew(served: Served, gateway: bool) -> None:
    """What she held and may see no more, or sees now and was never told, is in no difference."""
    addresses = [served.gateway.address] if gateway else [each.location for each in served.job.services]

    def follow(resume: str | None) -> tuple[set[str], list[str], str]:
        """Kinds that she was told before the first position, whom it was about, and where to go on."""
        kinds, who = set(), []
        with FlightReader(addresses, token=ANNA[0]) as reader, reader.changes("totals", resume=resume) as changes:
            while True:
                change = changes.take(20.0)
                assert change is not None
                if change.kind == "position":
                    assert isinstance(change.resume, str)
                    return kinds, sorted(who), change.resume
                kinds.add(change.kind)
                who += change.rows.column("who").to_pylist() if change.kind == "rows" else []

    def rights(rows: str, sees: list[str]) -> None:
        served.replace("anna", rows=rows)
        with FlightReader(addresses, token=ANNA[0]) as reader:
            until(lambda: sorted(reader.scan("totals")["who"].to_pylist()) == sees, 10)

    rights('rows = {who = "anna"}', ["anna"])
    _, who, resume = follow(None)
    assert who == ["anna"]
    served.job.append("a", [("anna", 30, 3, "z"), ("bert", 30, 3, "z")])
    assert follow(resume)[:2] == ({"rows"}, ["anna"])
    for rows, sees in (
        ('rows = {who = "bert"}', ["bert"]),
        ("", ["anna", "bert"]),
        ('rows = {who = "anna"}', ["anna"]),
    ):
        rights(rows, sees)
        kinds, who, resume = follow(resume)
        assert "reset" in kinds
        assert who == sees
