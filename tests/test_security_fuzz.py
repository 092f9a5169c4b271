"""Whatever comes in from outside, a guarded service answers cleanly, lets nobody in by it, and loses nothing by it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from attack import damaged
from guarded import INTERNAL, PASSWORD, Guarded, config, shows, token
from pyarrow import flight

import flowstate as fs
from flowstate.errors import FlowstateError
from flowstate.view import access as access_of
from flowstate_flight import auth


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    patch = pytest.MonkeyPatch()
    patch.setattr(access_of, "SCRYPT", (2, 1, 1))  # thousands of logins are tried
    patch.setattr(access_of, "_NOBODY", fs.Access.hash_password("x" * 8))
    held = config()
    held["principals"]["anna"]["password"] = fs.Access.hash_password(PASSWORD)
    guarded = Guarded(access=fs.Access(held))
    guarded.service.set_cut_handler(lambda job, timeout: {"cut": 1, "position": {}})
    yield guarded
    guarded.close()
    patch.undo()


def test_fuzzed_headers_let_nobody_in(guarded: Guarded) -> None:
    chance = Random(7)
    shown = [
        token("boss"),
        INTERNAL,
        guarded.access.login("anna", PASSWORD) or "",
        b64encode(f"anna:{PASSWORD}".encode()).decode(),
    ]
    plain = [chr(each) for each in range(32, 127)]
    with flight.connect(guarded.service.location) as client:
        for _ in range(2000):
            text = damaged(chance, chance.choice(shown).encode()).decode("latin-1")
            text = "".join(each if each in plain else chance.choice(plain) for each in text)  # gRPC carries no others
            kind = chance.choice(["Bearer ", "bearer ", "Basic ", "Bearer", "", "Digest "])
            if text.strip() in shown:
                continue
            options = flight.FlightCallOptions(headers=[(b"authorization", (kind + text).encode())], timeout=20)
            with pytest.raises(flight.FlightUnauthenticatedError, match=auth.NOT_LET_IN):
                list(client.list_flights(options=options))


def test_fuzzed_handshakes_and_tokens_let_nobody_in(guarded: Guarded) -> None:
    """At the door itself, since clients send only what is well formed."""
    chance = Random(8)
    door = auth.server_options("127.0.0.1", guarded.access, internal=INTERNAL)["middleware"][auth.NAME]
    right = b64encode(f"anna:{PASSWORD}".encode()).decode()
    login = guarded.access.login("anna", PASSWORD)
    assert login is not None

    class Info:
        method = flight.FlightMethod.HANDSHAKE

    class Other:
        method = flight.FlightMethod.DO_GET

    assert door.start_call(Info, {"authorization": [f"Basic {right.rstrip('=')}"]}).sending_headers()
    for _ in range(3000):
        raw = (
            damaged(chance, right.encode()).decode("latin-1")
            if chance.random() < 0.7
            else b64encode(chance.randbytes(chance.randrange(40))).decode()
        )
        if _credential(raw) == f"anna:{PASSWORD}":
            continue
        shown: list[Any] = [chance.choice(["Basic ", "basic ", "Bearer ", ""]) + raw]
        if chance.random() < 0.2:
            shown = chance.choice([[], [*shown, *shown], [b"\xff" + raw.encode("latin-1")], [None], [5]])
        with pytest.raises(flight.FlightUnauthenticatedError, match=auth.NOT_LET_IN):
            door.start_call(Info, {"authorization": shown})
    for _ in range(3000):
        given = damaged(chance, chance.choice([login, token("boss"), INTERNAL]).encode()).decode("latin-1")
        if chance.random() < 0.2:
            given = "".join(
                chr(chance.choice([0, 46, 95, 0xD800, 0x1F600, chance.randrange(0x10FFFF)])) for _ in range(20)
            )
        if given.strip() in (login, token("boss"), INTERNAL):
            continue
        assert guarded.access.of_token(given) is None
        with pytest.raises(flight.FlightUnauthenticatedError, match=auth.NOT_LET_IN):
            door.start_call(Other, {"authorization": [f"Bearer {given}"]})


def _credential(raw: str) -> str:
    """What a door that is as lenient as may be would make of it."""
    try:
        return b64decode(raw.strip() + "=" * (-len(raw.strip()) % 4)).decode()
    except ValueError:
        return ""


def test_files_of_access_of_any_content_are_read_or_refused() -> None:
    chance = Random(9)
    pieces: list[Any] = [
        config(),
        config()["principals"],
        config()["principals"]["anna"],
        [],
        {},
        None,
        "x",
        1,
        ["sha256:"],
        {"a": {}},
        [{}],
    ]
    for _ in range(1000):
        data = config()
        place: Any = data
        for _ in range(chance.randint(0, 3)):
            keys = (
                list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
            )
            if keys:
                place, above, key = place[(key := chance.choice(keys))], place, key
                if chance.random() < 0.5 or not isinstance(place, dict | list):
                    above[key] = chance.choice(pieces)
                    break
        with contextlib.suppress(FlowstateError):
            fs.Access(data)


def test_noise_on_the_port_and_thousands_of_refusals_leave_nothing_open(guarded: Guarded) -> None:
    chance = Random(10)
    place = ("127.0.0.1", guarded.service.port)

    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    with flight.connect(guarded.service.location) as client:
        list(client.list_flights(options=shows(token("anna"))))
        before = opened()
        for _ in range(200):
            with socket.create_connection(place, timeout=10) as raw:
                begin = chance.choice(
                    [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"]
                )
                raw.sendall(begin + chance.randbytes(chance.randrange(200)))
        for _ in range(50):
            with flight.connect(guarded.service.location) as stranger, pytest.raises(flight.FlightUnauthenticatedError):
                list(stranger.list_flights())
        deadline = time.monotonic() + 20
        while opened() > before + 20 and time.monotonic() < deadline:
            time.sleep(0.05)  # the server closes its ends when it sees that they are gone
        assert opened() <= before + 20
        assert [each.descriptor.path[1] for each in client.list_flights(options=shows(token("anna")))] == [b"subtotals"]
