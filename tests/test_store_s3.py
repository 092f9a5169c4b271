from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3_server import SECRET, S3Server, s3_server

from flowstate.errors import FlowstateError, InvalidFlow, Unavailable
from flowstate.snapshot.chain import Chain
from flowstate.store import Store, s3

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def failure(action: Callable[[], object]) -> str:
    with pytest.raises(FlowstateError) as caught:
        action()
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    return f"{type(caught.value).__name__}: {caught.value}"


def test_what_is_wrong_is_said(server: S3Server) -> None:
    good: dict[str, Any] = server.storage_options
    url = server.bucket("errors")
    assert "InvalidFlow: there is no such bucket" in failure(Store.open("s3://nowhere/x", **good).probe)
    wrong = {**good, "secret": "wrong-" + "secret"}
    assert "InvalidFlow: S3 refused; check bucket, region, credentials" in failure(Store.open(url, **wrong).probe)
    assert "InvalidFlow: S3 refused" in failure(Store.open(url, **{**good, "key": "nobody"}).probe)
    assert "InvalidFlow: S3 cannot be used like this" in failure(Store.open(url, nonsense=1).probe)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = {**good, "endpoint_url": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        assert "Unavailable: S3 does not answer" in failure(Store.open(url, **away).probe)


def test_secrets_are_not_told(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(server.bucket("secrets"), **{**server.storage_options, "key": SECRET})
    assert SECRET not in failure(store.probe)
    assert SECRET not in repr(store)
    with pytest.raises(InvalidFlow, match="do not belong into a URL") as caught:
        Store.open(f"s3://name:{SECRET}@bucket/path")
    assert SECRET not in str(caught.value)


def test_server_goes_away_and_comes_back() -> None:
    with s3_server() as server:
        store = Store.open(server.bucket("away"), **server.storage_options)
        assert store.create("a", b"1")
    for action in (
        lambda: store.create("b", b"1"),
        lambda: store.read("a"),
        lambda: store.list(),
        lambda: store.exists("a"),
    ):
        with pytest.raises(Unavailable):
            action()


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and says nothing: every operation ends within its time limit."""
    monkeypatch.setattr(s3, "_LIMIT", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = Store.open("s3://bucket/x", key="k", secret="s", endpoint_url=endpoint)
        for action in (
            lambda: store.create("a", b""),
            lambda: store.read("a", 0, 1),
            lambda: store.list("a"),
            lambda: store.exists("a"),
            lambda: store.delete("a"),
        ):
            with pytest.raises(Unavailable, match="S3 does not answer"):
                action()


def test_an_object_store_that_ignores_conditions_is_refused(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As old servers do: the put succeeds although the object is there."""
    store = Store.open(server.bucket("old"), **server.storage_options)
    filesystem = store._filesystem()  # type: ignore[attr-defined]
    put = filesystem.pipe_file
    monkeypatch.setattr(filesystem, "pipe_file", lambda name, data, **_: put(name, data))
    with pytest.raises(InvalidFlow, match="lets two writers create the same object"):
        store.probe()


def test_compare_and_swap(server: S3Server) -> None:
    """Four writers share one chain; nothing is lost, nothing is there twice."""
    store = Store.open(server.bucket("chain"), **server.storage_options)

    def note(writer: int) -> None:
        chain = Chain(store, "shared")
        for number in range(5):
            name = f"{writer}-{number}"
            while True:
                latest = chain.latest()
                version, noted = (0, []) if latest is None else (latest[0], latest[1]["noted"])
                if name in noted or chain.append(version + 1, {"noted": [*noted, name]}):
                    break

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(note, range(4)))
    latest = Chain(store, "shared").latest()
    assert latest is not None
    assert latest[0] == 20
    assert sorted(latest[1]["noted"]) == sorted(f"{writer}-{number}" for writer in range(4) for number in range(5))
