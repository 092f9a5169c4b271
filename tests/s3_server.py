"""A real server that speaks the S3 protocol, for tests: versitygw over a folder, built once by Go and kept in .cache/."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VERSION = "v1.8.0"
KEY, SECRET = "flowstate-test", "flowstate-test-password"
CACHE = Path(__file__).resolve().parent.parent / ".cache"


@dataclass
class S3Server:
    """`folder` holds one folder per bucket; `storage_options` are for `Store.open`."""

    endpoint: str
    folder: Path
    storage_options: dict[str, Any]
    run: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: nothing is told to anybody."""
        self.process.kill()
        self.process.wait(20)

    def restart(self) -> None:
        """Again, at the same address, over the same folder; returns when it answers."""
        self.process = self.run()

    def bucket(self, name: str) -> str:
        """Make a bucket; its URL."""
        (self.folder / name).mkdir(exist_ok=True)
        return f"s3://{name}"


def _binary() -> Path:
    """The server's program. Skips, saying what to install, when it cannot be built; fails instead on CI."""
    program = CACHE / f"versitygw-{VERSION}" / "versitygw"
    program.parent.mkdir(parents=True, exist_ok=True)
    with open(program.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        go = shutil.which("go")
        if go is None:
            _give_up("needs Go to build an S3 server: install it from https://go.dev/dl (or apt-get install golang-go)")
        module = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
        environment = {**os.environ, "GOBIN": str(program.parent)}
        built = subprocess.run(
            [str(go), "install", module], env=environment, capture_output=True, text=True, timeout=900
        )
        if built.returncode:
            _give_up(f"go install {module} failed: {built.stderr[-500:]}")
        return program


def _give_up(reason: str) -> None:
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server of its own, on a free port, gone afterwards."""
    program = _binary()
    with tempfile.TemporaryDirectory(prefix="flowstate-s3-") as name, contextlib.ExitStack() as stack:
        folder = Path(name) / "data"
        folder.mkdir()
        log = stack.enter_context(open(Path(name) / "log", "wb"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        command = [str(program), "--port", f"127.0.0.1:{port}", "posix", str(folder)]

        def run() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _await(process, port, Path(name) / "log")
            return process

        endpoint = f"http://127.0.0.1:{port}"
        options = {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        server = S3Server(endpoint, folder, options, run, run())
        try:
            yield server
        finally:
            server.signal(signal.SIGCONT)
            server.process.terminate()
            server.process.wait(20)


def _await(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.fail(f"the S3 server ended: {log.read_text()[-500:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail(f"the S3 server did not start: {log.read_text()[-500:]}")
