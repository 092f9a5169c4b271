from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server

from flowstate.store import Store
from flowstate.testing.conformance_store import CHECKS


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_local(check: Callable[[Store], None], tmp_path: Path) -> None:
    check(Store.open(tmp_path / "not there yet" / "snapshots"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_memory(check: Callable[[Store], None]) -> None:
    check(Store.open(f"memory://{uuid.uuid4().hex}/snapshots"))


@pytest.mark.s3
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_s3(check: Callable[[Store], None], server: S3Server) -> None:
    bucket = server.bucket(check.__name__.replace("_", "-"))
    check(Store.open(f"{bucket}/some prefix/of it", **server.storage_options))


@pytest.mark.s3
def test_s3_whole_bucket(server: S3Server) -> None:
    store = Store.open(server.bucket("whole"), **server.storage_options)
    store.probe()
    assert store.create("a/b", b"1")
    assert store.list() == ["a"]
