"""What every attack shares: how many cases there are, what they may cost, and the service that is attacked. No Dask.

`FLOWSTATE_ATTACKS=100000 pytest tests/test_attack_*.py` tries that many cases of each kind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import psutil
import pyarrow as pa
from hand_job import WHO, HandJob
from pyarrow import flight
from waiting import until

import flowstate as fs
from flowstate_flight import FlightReader
from flowstate_flight.gateway import Gateway
from flowstate_sql.limits import Limits
from flowstate_sql.partial import answer_partial
from flowstate_sql.served import ServedSql

CASES = int(os.environ.get("FLOWSTATE_ATTACKS", "10000"))
MIB = 1 << 20
Found = TypeVar("Found")


@dataclass(frozen=True)
class Footprint:
    """Of this process: resident bytes after everything that can be given back was given back, open files and sockets, threads that Python
    began, by their names, and all threads."""

    memory: int
    open: int
    named: tuple[str, ...]
    threads: int

    @staticmethod
    def now() -> Footprint:
        gc.collect()
        pa.default_memory_pool().release_unused()
        ctypes.CDLL(None).malloc_trim(0)
        process = psutil.Process()
        named = tuple(sorted(each.name for each in threading.enumerate() if not each.name.startswith("Dummy")))
        return Footprint(process.memory_info().rss, process.num_fds(), named, process.num_threads())


#: Descriptors and threads that gRPC keeps for a while.
_LINGERING = 12


def cases(grows: float, count: int = CASES) -> Iterator[int]:
    """Their numbers. The first half warms every cache; in the second, this process may grow by `grows` MiB, and by no open file."""
    half: Footprint | None = None
    for number in range(count):
        if number == count // 2:
            half = Footprint.now()
        yield number
    assert half is not None
    most = half.open + _LINGERING
    now = until(lambda: _settled(most), says=lambda: f"{most} {Footprint.now()}")
    grown = (now.memory - half.memory) / MIB
    print(
        f"{count} cases: {grown:+.1f} MiB in the second half, {half.open} -> {now.open} open, {half.threads} -> {now.threads} threads"
    )
    assert grown <= grows


def _settled(most: int) -> Footprint | None:
    found = Footprint.now()
    return found if found.open <= most else None


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """What was opened inside is closed, and what was begun has ended."""
    before = Footprint.now()
    yield

    def ended() -> bool:
        now = Footprint.now()
        return (
            now.open <= before.open + _LINGERING
            and now.threads <= before.threads + _LINGERING
            and set(now.named) <= set(before.named)
        )

    until(ended, pause=0.2, says=lambda: f"{before} {Footprint.now()} {_threads()}")


def _threads() -> str:
    """What the system calls them."""
    return " ".join(sorted(each.read_text().strip() for each in Path("/proc/self/task").glob("*/comm")))


# what is attacked

ANNA, ALL = fs.Access.make_token(), fs.Access.make_token()
ACCESS = {
    "principals": {
        "anna": {
            "tokens": [ANNA[1]],
            "grants": [{"actions": ["read", "sql"], "views": ["totals", "hours"], "rows": {"who": "anna"}}],
        },
        "all": {"tokens": [ALL[1]], "grants": [{"actions": ["read", "sql", "control"]}]},
    }
}


def shows(token: str) -> flight.FlightCallOptions:
    """A call that hangs fails."""
    return flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())], timeout=20)


class Target:
    """A job of two real partitions, each at a Flight service that lets Anna see her own rows of two views, and a gateway to them with
    SQL. Its rows are applied by hand."""

    def __init__(self) -> None:
        access = fs.Access(ACCESS)
        self.job = HandJob(access=access, internal="internal")
        self.job.append("a", [(who, 10, index, "x" * index) for index, who in enumerate(WHO)])
        self.job.append("a", [("anna", 3700 * each, 1, None) for each in range(1, 5)])
        for service in self.job.services:
            service.set_partial_handler(answer_partial)
            service.set_cut_handler(lambda job, timeout: {"cut": 1, "position": {"a": [len(WHO) + 4, 0]}})
        self.workers = [each.location for each in self.job.services]
        self.reader = FlightReader(self.workers, token="internal", grace=0.1, patience=0.3)
        self.gateway = Gateway(
            self.reader, access=access, sql=ServedSql(self.reader, Limits(rows=5000, memory=200 * MIB))
        )

    def close(self) -> None:
        self.gateway.close()
        self.job.close()
        self.__dict__.clear()  # whoever holds this does not hold what was in it, nor the threads of that

    def check(self, address: str, *, worker: bool) -> None:
        """It still tells each what is hers, and no more."""
        with flight.connect(address) as client:
            for token, wanted in ((ANNA[0], {"anna"}), (ALL[0], set(WHO))):
                found = patiently(lambda: self._seen(client, address, shows(token), worker))  # noqa: B023
                assert found <= wanted if worker else found == wanted

    @staticmethod
    def _seen(client: flight.FlightClient, address: str, options: Any, worker: bool) -> set[Any]:
        info = client.get_flight_info(flight.FlightDescriptor.for_path("totals"), options)
        tickets = [each.ticket for each in info.endpoints if not worker or each.locations[0].uri.decode() == address]
        return {who for each in tickets for who in client.do_get(each, options).read_all().column("who").to_pylist()}


def patiently(call: Callable[[], Found]) -> Found:
    """What it gives. The patience of the target is short, and a machine may be busy."""

    def attempt() -> list[Found]:
        with contextlib.suppress(flight.FlightUnavailableError, flight.FlightServerError):
            return [call()]
        return []

    return until(attempt)[0]


@contextlib.contextmanager
def target() -> Iterator[Target]:
    """Nothing is left of it. One was there before, so that what a process loads once is loaded."""
    Target().close()
    with nothing_left():
        found = Target()
        try:
            yield found
        finally:
            found.close()


# what is sent, and what comes back

#: What stands where something else is meant.
VALUES: list[Any] = [
    *(1, 0, -1, 4, 1.5, 2**31, 2**63, 2**80, -(2**63), None, True, False, [], {}, [[[]]], 0.001),
    *("", "a", "lookup", "hand", "other", "totals", "hours", "dead_letters", "AAAA", "ÿ\u0000", "\ud800", "x" * 2000, "\x1b"),
    *(["total"], ["who", "who"], {"cut": 1}, {"snapshot": 1}, {"max_age": 1e-9}, {"consistent": True}),
    *({"at_least": {"a": [1, 0]}}, {"at_least": {"a": [10**9, 0]}}, {"at_least": {"": []}}),
]  # fmt: skip


def damaged(chance: Random, raw: bytes) -> bytes:
    """With some bytes changed, left out, doubled or put in."""
    found = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(5):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del found[at : at + chance.randint(1, 8)]
            case 2:
                found[at:at] = chance.randbytes(chance.randint(1, 4))
            case 3:
                found[at:at] = found[at : at + chance.randint(1, 16)]
            case _:
                found[at : at + 4] = chance.choice((b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"))
    return bytes(found)


def nested(chance: Random) -> str:
    """Brackets that are deep, or never closed."""
    depth = chance.choice((10, 100, 900, 5000, 50_000))
    begin, end = chance.choice((("[", "]"), ('{"v":', "}"), ('{"fresh":[', "]}")))
    return begin * depth + chance.choice(("", "1")) + end * chance.choice((0, depth))


KINDS = ("InvalidFlow", "Unavailable", "Moved", "Behind", "Fenced")


def clean(call: Callable[[], Any]) -> Any:
    """Its result; None if it ends in an error as clients know them, which tells nothing of the inside and is no book."""
    try:
        return call()
    except flight.FlightError as error:
        found = error
    assert isinstance(found, flight.FlightServerError | flight.FlightUnavailableError), found
    assert found.extra_info, found
    assert json.loads(found.extra_info)["kind"] in KINDS, found
    text = str(found)
    assert not any(each in text for each in ("Traceback", ".py", "site-packages")), text
    assert len(text) < 20_000
    return None


def only_hers(found: pa.Table | None) -> None:
    """Anna sees no row of another, whatever she asks."""
    if found is not None and "who" in found.schema.names:
        assert set(found.column("who").to_pylist()) <= {"anna"}
