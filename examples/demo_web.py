"""The billing job behind a web page: pick a customer, see her months change as events come in, kill a worker, and watch what happens.

The page asks flowstate's own HTTP service (JSON and Server-Sent Events), mounted into this small application beside the page, the two
paths of a classic balance checker (`/customers/{customer}`, `/types/{type}`) and a button. `make demo-web` runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import uvicorn
from demo import Generator, Interruption, flow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import flowstate as fs
from flowstate.api.http import Http
from flowstate.errors import FlowstateError
from flowstate.testing import billing

PAGE = Path(__file__).resolve().parent / "web"
#: Nothing but what comes from here may be loaded or run by the page.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; connect-src 'self'; img-src data:"
SAFE = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Balance:
    """The application. `reads` and `served` are of one job, wherever that runs; `kill` ends one of its worker processes and says which,
    where that may be done."""

    def __init__(self, reads: Any, served: Http, kill: Callable[[], int] | None = None) -> None:
        self._reads, self._kill = reads, kill
        self._token = (
            "" if kill is None else secrets.token_urlsafe(16)
        )  # shown to the page alone: no other site's script can know it
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Mount("/page", StaticFiles(directory=PAGE)),
                Route("/customers/{customer}", self._customer),
                Route("/types/{kind}", self._type),
                Route("/kill", self._killed, methods=["POST"]),
                Mount("/", served.app),
            ]
        )

    async def _page(self, request: Request) -> Response:
        return HTMLResponse((PAGE / "index.html").read_text().replace("{token}", self._token), headers=SAFE)

    def _customer(self, request: Request) -> Response:
        return self._newest("monthly_subtotals", "customer", request.path_params["customer"])

    def _type(self, request: Request) -> Response:
        return self._newest("type_subtotals", "type", request.path_params["kind"].upper())

    def _newest(self, view: str, name: str, key: str) -> Response:
        try:
            rows = self._reads[view].lookup(key).sort_by("month").to_pylist()
        except FlowstateError:
            rows = []
        if not rows:
            return JSONResponse({"error": "Error Querying Current Total!"}, 404)
        newest = rows[-1]
        return JSONResponse({name: key, "month": f"{newest['month']:%Y-%m}", "totalEur": str(newest["total"])})

    def _killed(self, request: Request) -> Response:
        shown = request.headers.get("x-page-token", "")
        if self._kill is None or not secrets.compare_digest(shown.encode(), self._token.encode()):
            return JSONResponse({"error": {"message": "only the page itself may kill a worker"}}, 403)
        try:
            return JSONResponse({"killed": self._kill()})
        except FlowstateError as error:
            return JSONResponse({"error": {"message": error.message}}, 503)


class Server:
    """`app` on loopback, in a thread, until it is closed. `address` is like ``http://127.0.0.1:8000``. OSError if the port is taken."""

    def __init__(self, app: Any, port: int = 0) -> None:
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        )
        self._socket = socket.create_server(("127.0.0.1", port))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._socket],), name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def killer(job: fs.Job) -> Callable[[], int]:
    """Ends one worker process of `job` at once, by turns; its nanny starts another."""
    killed: list[int] = []

    def kill() -> int:
        running = job.client.run(os.getpid, on_error="ignore")
        pids = [pid for _, pid in sorted(running.items()) if isinstance(pid, int)]
        if not pids:
            raise fs.Unavailable("no worker is there to be killed; wait a moment", retry_after=1.0)
        pid = pids[len(killed) % len(pids)]
        killed.append(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    return kill


def run(arguments: argparse.Namespace, folder: Path, interruption: Interruption) -> int:
    log = billing.FileLog(folder / "log", splits=2)
    log.begin(billing.events(random.Random(arguments.seed), months=None))
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="flowstate-demo-workers-"))
        stack.enter_context(dask.config.set({"temporary-directory": scratch}))
        if sys.stderr.isatty():
            print("starting; the first time on a machine this compiles kernels, for about 20 s", file=sys.stderr)
        job = stack.enter_context(fs.start(*flow(folder), snapshots=f"{folder}/snapshots/", every="2s"))
        served = stack.enter_context(fs.http(snapshots=f"{folder}/snapshots/"))
        reads = stack.enter_context(fs.connect(snapshots=f"{folder}/snapshots/"))
        server = stack.enter_context(Server(Balance(reads, served, killer(job)).app, arguments.port))
        generator = Generator(log, arguments.seed, None)
        stack.callback(generator.stop)
        interruption.may_break_in = False
        generator.start()
        print(f"open {server.address}  (Ctrl-C stops it)", flush=True)
        while not interruption.asked.wait(0.5):
            if generator.failure is not None:
                raise generator.failure
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="where the page is; 0 for any free port")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same events")
    parser.add_argument("--data", type=Path, help="keep everything in this folder, and go on from what is there")
    arguments = parser.parse_args()
    interruption = Interruption()
    try:
        with ExitStack() as stack:
            folder = arguments.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowstate-demo-")))
            return run(arguments, folder.resolve(), interruption)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"error: {error.strerror or error}; --port 0 takes any free one", file=sys.stderr)
        return 1
    except FlowstateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
