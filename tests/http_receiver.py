"""A real HTTP service in a process of its own that takes every idempotency key once, durably, and misbehaves when it is told to.

``python http_receiver.py <port> <log>``: each key it takes is a line of JSON in the log, on disk before it is answered.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Service(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, log: Path) -> None:
        self.lock = threading.Lock()
        self.taken: dict[str, dict[str, Any]] = {}
        self.behaviour: dict[str, Any] = {}
        self.repeats = self.asked = 0
        log.touch()
        for line in log.read_text().splitlines():
            each = json.loads(line)
            self.taken[each["key"]] = each
        self.log = log.open("a")
        super().__init__(("127.0.0.1", port), Handler)

    def take(self, record: dict[str, Any]) -> int:
        with self.lock:
            known = self.taken.get(record["key"])
            if known is not None:
                self.repeats += 1
                same = all(known[name] == record[name] for name in ("body", "path", "method"))
                return 200 if same else 422
            self.taken[record["key"]] = record
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
            os.fsync(self.log.fileno())
            return 201


class Handler(BaseHTTPRequestHandler):
    """Behaviour: `times` requests are answered by `do`: ``status`` (not taken), ``taken`` (taken, but answered with `status`), ``cut``
    (taken, half of the body), ``cut head`` (taken, half of the head), ``slow`` (taken, answered after `seconds`). Rows whose n is
    in `refused` are always answered with `refusal`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # heads and bodies are sent apart
    server: Service

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/_behave":
            self.server.behaviour = json.loads(body)
            return self.answer(200)
        if self.path == "/_count":
            return self.answer(200, json.dumps([self.server.asked, self.server.repeats]))
        with self.server.lock:
            self.server.asked += 1
            told = dict(self.server.behaviour)
            if told.get("times", 0) > 0:
                self.server.behaviour["times"] -= 1
            else:
                told["do"] = None
        rows = json.loads(body)
        rows = rows if isinstance(rows, list) else [rows]
        if any(row.get("n") in told.get("refused", ()) for row in rows):
            return self.answer(told.get("refusal", 422), "no such invoice " + "x" * 500)
        if told["do"] == "status":
            return self.answer(told["status"], "", told.get("headers", {}))
        headers = {name.lower(): value for name, value in self.headers.items()}
        record = {"key": headers["idempotency-key"], "method": self.command, "path": self.path, "headers": headers}
        status = self.server.take({**record, "body": body})
        match told["do"]:
            case "taken":
                self.answer(told["status"])
            case "cut":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                self.close_connection = True
            case "cut head":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nConte")
                self.close_connection = True
            case "slow":
                time.sleep(told["seconds"])
                self.answer(status)
            case _:
                self.answer(status, "[]")

    do_PUT = do_PATCH = do_POST

    def answer(self, status: int, text: str = "", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Receiver:
    """The service's process, for tests."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, str(self.port), str(self.log)])
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def behave(self, **behaviour: Any) -> None:
        self._ask("/_behave", json.dumps(behaviour))

    @property
    def counts(self) -> tuple[int, int]:
        """Requests that came, and those with a key that had been taken, since it started."""
        asked, repeats = json.loads(self._ask("/_count", ""))
        return asked, repeats

    def _ask(self, path: str, body: str) -> str:
        with urllib.request.urlopen(self.url + path, body.encode(), timeout=10) as answer:
            return str(answer.read().decode())

    @property
    def taken(self) -> list[dict[str, Any]]:
        """What was taken, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for each in self.taken:
            body = json.loads(each["body"])
            found += body if isinstance(body, list) else [body]
        return found


if __name__ == "__main__":
    Service(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
