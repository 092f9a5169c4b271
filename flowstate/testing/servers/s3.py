"""A real server that speaks the S3 protocol: versitygw over a folder, built once by Go."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from flowstate.clock import Clock
from flowstate.errors import Unavailable
from flowstate.testing.servers import cache_folder, fetching
from flowstate.testing.servers.server import Server
from flowstate.testing.tormentor.cluster import free_port
from flowstate.testing.tormentor.processes import ProcessTree

VERSION = "v1.8.0"
KEY, SECRET = "flowstate-test", "flowstate-test-password"


def _program() -> Path:
    return cache_folder() / f"versitygw-{VERSION}" / "versitygw"


def missing() -> str | None:
    """Why no server can run here, or None."""
    if _program().exists() or shutil.which("go"):
        return None
    return "needs Go to build an S3 server: install it from https://go.dev/dl (or apt-get install golang-go)"


def program() -> Path:
    """The server's program; built when it is not there. `Unavailable` if that cannot be done."""
    if reason := missing():
        raise Unavailable(reason)
    path = _program()
    with fetching(path.parent):
        if not path.exists():
            module = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
            environment = {**os.environ, "GOBIN": str(path.parent)}
            command = [str(shutil.which("go")), "install", module]
            built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
            if built.returncode:
                raise Unavailable(f"go install {module} failed: {built.stderr[-500:]}")
    return path


class S3Server(Server):
    """One server at `endpoint`, always the same; `folder` holds one folder per bucket. `storage_options` are for `Store.open`."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        super().__init__(folder / "s3.log", clock)
        self.folder, self._port = folder / "data", free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        region = {"region_name": "us-east-1"}
        self.storage_options: dict[str, Any] = {
            "key": KEY, "secret": SECRET, "endpoint_url": self.endpoint, "client_kwargs": region,
        }  # fmt: skip

    def bucket(self, name: str) -> str:
        """Make a bucket; its URL."""
        (self.folder / name).mkdir(exist_ok=True)
        return f"s3://{name}"

    def start(self) -> None:
        """Start, also after `kill`, on the same data and port; returns when it listens."""
        environment = {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        command = [str(program()), "--port", f"127.0.0.1:{self._port}", "posix", str(self.folder)]
        self._process = ProcessTree(command, self.log, environment=environment)
        self._wait("the S3 server", self._connect, 30, pause=0.02)

    def _connect(self) -> None:
        socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
