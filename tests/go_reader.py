"""The Flight client in Go (`tests/go_client`): built once by Go, skipped where it cannot be, and asked by lines of JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from required import required

from flowstate.errors import Unavailable
from flowstate.testing.servers import cache_folder, fetching

SOURCE = Path(__file__).with_name("go_client")


def _program() -> Path:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((SOURCE / name).read_bytes())
    return cache_folder() / "go_client" / digest.hexdigest()[:16]


def missing() -> str | None:
    """Why it cannot run here, or None."""
    if _program().exists() or shutil.which("go"):
        return None
    return "needs Go to build a Flight client: install it from https://go.dev/dl (or apt-get install golang-go)"


def build() -> Path:
    """The program; built when it is not there. `Unavailable` if that cannot be done."""
    if reason := missing():
        raise Unavailable(reason)
    path = _program()
    with fetching(path.parent):
        if not path.exists():
            command = [str(shutil.which("go")), "build", "-mod=readonly", "-buildvcs=false"]
            made = path.with_suffix(".new")
            built = subprocess.run(
                [*command, "-o", str(made), "."], cwd=SOURCE, capture_output=True, text=True, timeout=500
            )
            if built.returncode:
                raise Unavailable(f"go build failed: {built.stderr[-500:]}")
            os.replace(made, path)
    return path


class GoReader:
    """One process of it; `ask` takes what its `question` says."""

    def __init__(self, address: str, token: str | None = None) -> None:
        required(missing, build)
        arguments = [str(_program()), address, *([token] if token is not None else [])]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the client in Go has ended"
        return dict(json.loads(line))

    def answer(self, **question: Any) -> Any:
        said = self.ask(**question)
        assert "error" not in said, said["error"]
        return said["answer"]

    def table(self, **question: Any) -> pa.Table:
        """The rows of all parts, without metadata."""
        parts = [part for part in self.answer(**question) if part.get("ipc")]
        tables = [pa.ipc.open_stream(b64decode(part["ipc"])).read_all() for part in parts]
        return pa.concat_tables([each.replace_schema_metadata() for each in tables])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
