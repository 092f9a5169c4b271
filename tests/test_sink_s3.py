"""The conformance of sinks of files, on a real server that speaks the S3 protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from s3_server import S3Server, s3_server
from sink_folder import Folder, watch_target

from flowstate.plan.spec import SinkSpec
from flowstate.sink.files import FileSink
from flowstate.store import Store
from flowstate.testing.conformance_sink import CHANGES_CHECKS, CHECKS, SinkUnderTest

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def under_test(server: S3Server, name: str, kind: Any, mode: Any, options: dict[str, Any]) -> SinkUnderTest:
    bucket = server.bucket(name.replace("_", "-"))
    target = Store.open(f"{bucket}/out", **server.storage_options)
    spec = SinkSpec(kind, "totals", target.url, mode, {**options, "storage_options": server.storage_options})
    return SinkUnderTest(
        lambda: FileSink(spec),
        Store.open(f"{bucket}/snapshots", **server.storage_options),
        Folder(target).rows,
        watch_target,
        rolls="roll_bytes" in options,
        deaths=6,
        histories=2,
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [("parquet", {"partition_by": "kind"}), ("json", {"compression": "gzip", "roll_bytes": 1500})],
    ids=["parquet", "json-rolling"],
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(
    check: Callable[[SinkUnderTest], None], server: S3Server, kind: str, options: dict[str, Any]
) -> None:
    check(under_test(server, f"{kind}-{check.__name__}", kind, "final", options))


@pytest.mark.parametrize("check", CHANGES_CHECKS, ids=lambda check: check.__name__)
def test_changes(check: Callable[[SinkUnderTest], None], server: S3Server) -> None:
    check(under_test(server, check.__name__, "csv", "changes", {"roll_after": 2_000_000}))
