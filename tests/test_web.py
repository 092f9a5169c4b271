"""The balance page of `make demo-web` in a browser, beside a real job: what it shows, and how, while parts of it go and come back."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page
from distributed import Client
from waiting import until

import flowstate as fs
from flowstate.testing import billing

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    """The module of the example."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("demo_web")
    finally:
        sys.path.remove(str(EXAMPLES))


def begin(client: Client, demo: Any, folder: Path) -> fs.Job:
    return fs.start(*demo.flow(folder), snapshots=folder / "snapshots", every="500ms", client=client)


def write(folder: Path, events: int) -> None:
    billing.FileLog(folder / "log", splits=2).append(islice(billing.events(random.Random(1), months=None), events))


def state(page: Page) -> str:
    return str(page.run("document.body?.dataset.state"))


def colour(page: Page, selector: str) -> str:
    return str(page.run(f"getComputedStyle(document.querySelector({selector!r})).color"))


def shown(page: Page) -> dict[str, tuple[Decimal, int]]:
    """By the month's beginning, as the page writes it: total and events."""
    script = """[...document.querySelectorAll("#months tr")].map((row) => [...row.cells].slice(1).map((cell) => cell.innerText))"""
    starts, totals, events = page.run(script) or ([], [], [])
    return {
        start: (Decimal(total.replace(",", "")), int(count.replace(",", "")))
        for start, total, count in zip(starts, totals, events, strict=True)
    }


def known(job: Any, customer: str) -> dict[str, tuple[Decimal, int]]:
    rows = job["monthly_subtotals"].lookup(customer).sort_by("month").to_pylist()[-6:]
    return {
        f"{each['month']:%b} {each['month'].day}, {each['month'].year}": (each["total"], each["events"])
        for each in rows
    }


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def kill(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/kill", b"", headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.browser
def test_the_page_through_good_and_bad_times(client: Client, demo: Any, browser: Browser, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("FLOWSTATE_PICTURES", tmp_path))
    write(tmp_path, 4000)
    job = begin(client, demo, tmp_path)
    served = fs.http(snapshots=tmp_path / "snapshots")
    reads = fs.connect(snapshots=tmp_path / "snapshots")
    with served, reads:
        server = demo.Server(demo.Balance(reads, served, demo.killer(job)).app)
        port = int(server.address.rpartition(":")[2])
        page = browser.open(server.address + "/")

        # Live: what it shows is what the job knows, and it is told of every change.
        until(lambda: state(page) == "live", 60, says=page.text)
        until(lambda: shown(page) == known(job, "Emma") != {}, 30, says=lambda: (shown(page), known(job, "Emma")))
        write(tmp_path, 6000)
        until(lambda: sum(each["events"] for each in job.to_table("monthly_subtotals").to_pylist()) == 6000, 30)
        until(lambda: shown(page) == known(job, "Emma"), 30, says=lambda: (shown(page), known(job, "Emma")))
        kinds = job.sql("select sum(total) from type_subtotals where kind = 'CALL'").fetchall()[0][0]
        row = """[...document.querySelectorAll("#kinds tbody tr")].find((row) => row.cells[0].innerText === "CALL")"""
        cells = f"[...({row}?.cells ?? [])].slice(1).map((cell) => cell.innerText)"
        until(lambda: sum(Decimal(each.replace(",", "")) for each in page.run(cells)) == kinds, 30)
        page.run("""(() => { const select = document.getElementById("customer"); select.value = "Noah";
                    select.dispatchEvent(new Event("change")); })()""")
        until(lambda: shown(page) == known(job, "Noah"), 30)
        page.shows("Noah, month from")
        green = colour(page, "#amount")
        page.picture(pictures / "web.png")
        dark = browser.open(server.address + "/#William", dark=True)
        until(lambda: shown(dark) == known(job, "William"), 60)
        dark.picture(pictures / "web-dark.png")
        dark.close()

        # The paths of old.
        newest = job["monthly_subtotals"]["Noah"].sort_by("month").to_pylist()[-1]
        said = {"customer": "Noah", "month": f"{newest['month']:%Y-%m}", "totalEur": str(newest["total"])}
        assert get(f"{server.address}/customers/Noah") == (200, said)
        assert get(f"{server.address}/types/call")[1]["type"] == "CALL"
        assert get(f"{server.address}/customers/nobody") == (404, {"error": "Error Querying Current Total!"})

        # A worker dies, at the press of the button and of nothing else: no answer is missing, no total falls.
        before = shown(page)
        assert kill(server.address) == 403
        assert kill(server.address, **{"X-Page-Token": "guessed", "Origin": "http://elsewhere"}) == 403
        pids = set(client.run(os.getpid).values())
        page.run("""document.getElementById("strip").replaceChildren(); document.getElementById("kill").click()""")
        page.shows("was killed at")
        until(lambda: len(now := set(client.run(os.getpid, on_error="ignore").values())) == 2 and now != pids, 60)
        until(lambda: state(page) == "live" and shown(page) == before, 60, says=page.text)
        assert page.run("document.querySelectorAll('#strip .gone').length") == 0

        # The job is stopped: the same totals, from its last snapshot, with their age.
        job.stop()
        until(lambda: state(page) == "saved", 60, says=page.text)
        page.shows("s old; the job is away")
        assert shown(page) == before
        amber = colour(page, "#amount")
        page.picture(pictures / "web-saved.png")

        # Nobody answers: what was known last stays.
        server.close()
        until(lambda: state(page) == "gone", 60, says=page.text)
        page.shows("not reachable since")
        assert shown(page) == before
        red = colour(page, "#amount")
        page.picture(pictures / "web-gone.png")
        assert len({green, amber, red}) == 3

        # Everything is back, the page by itself.
        write(tmp_path, 8000)
        with begin(client, demo, tmp_path) as job, demo.Server(demo.Balance(reads, served).app, port):
            until(lambda: state(page) == "live", 60, says=page.text)
            until(
                lambda: shown(page) == known(job, "Noah") != before, 60, says=lambda: (shown(page), known(job, "Noah"))
            )
            assert page.run("document.getElementById('kill').checkVisibility()") is True  # this page was loaded with it
            other = browser.open(f"http://127.0.0.1:{port}/")
            until(lambda: state(other) == "live", 60)
            assert other.run("document.getElementById('kill').checkVisibility()") is False
            assert kill(f"http://127.0.0.1:{port}") == 403
            for key in ("Tab", "Tab"):
                other.press(key)
            assert (
                other.run("document.activeElement.closest('[aria-labelledby]')?.getAttribute('aria-labelledby')")
                == "months-title"
            )
            other.close()
        page.close()
    assert [each for each in browser.complaints if "ERR_CONNECTION" not in each] == []


@pytest.mark.browser
def test_it_runs_as_it_is_told(browser: Browser, tmp_path: Path) -> None:
    """`make demo-web`, and Ctrl-C."""
    command = [sys.executable, str(EXAMPLES / "demo_web.py"), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("open http://127.0.0.1:"), (line, process.communicate())
            page = browser.open(line.split()[1] + "/")
            until(lambda: state(page) == "live" and shown(page), 60, says=page.text)
            page.close()
            os.killpg(process.pid, signal.SIGINT)
            said = process.communicate(timeout=60)
            assert (process.returncode, said) == (0, ("", ""))
        finally:
            process.kill()
