"""The S3 server of the tests: `flowstate.testing.servers.s3`, skipped where it cannot run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from required import required

from flowstate.testing.servers import s3
from flowstate.testing.servers.s3 import SECRET, S3Server

__all__ = ["SECRET", "S3Server", "s3_server"]


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server of its own, on a free port, gone afterwards."""
    required(s3.missing, s3.program)
    with tempfile.TemporaryDirectory(prefix="flowstate-s3-") as folder:
        server = S3Server(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()
