"""Pictures of the commands, drawn from what they really show: `FLOWSTATE_PICTURES` is the folder that keeps them."""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from at_terminal import AtTerminal
from browser import Browser
from distributed import Client
from terminal_picture import DARK, LIGHT, PLAIN, Grid, Row, Style, svg
from waiting import until

import flowstate as fs

COLUMNS = 108
FOLDER = os.environ.get("FLOWSTATE_PICTURES")
#: Seconds for which nothing happens before and after: a test needs none.
CALM = 2.0 if FOLDER else 0.2
CUSTOMERS = ("Anna", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana")
PRICES = {"book": 12.5, "lamp": 80.0, "tea": 3.1}


class Shop(threading.Thread):
    """Orders that come in while one watches, in two files, and customers who ask."""

    reads: Any = None

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self._paths = [folder / f"orders-{number}.jsonl" for number in range(2)]
        self._dice = random.Random(1)
        self.sell()

    def sell(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        for path in self._paths:
            kinds = self._dice.choices(list(PRICES), k=self._dice.randrange(40, 60))
            with path.open("a") as file:
                for kind in kinds:
                    order = {"customer": self._dice.choice(CUSTOMERS), "kind": kind, "amount": PRICES[kind], "at": now}
                    file.write(json.dumps(order) + "\n")

    def run(self) -> None:
        while not self.stopping.wait(0.05):
            self.sell()
            if self.reads is not None:
                self.reads["totals"].lookup((self._dice.choice(CUSTOMERS), "tea"), max_age=None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name, since it is seen."""
    with tempfile.TemporaryDirectory(prefix="shop-") as folder:
        yield Path(folder)


@pytest.fixture
def job(client: Client, folder: Path, request: pytest.FixtureRequest) -> Iterator[fs.Job]:
    schema = pa.schema(
        {"customer": pa.string(), "kind": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")}
    )
    shop = Shop(folder)
    orders = fs.scan_files(
        f"{folder}/*.jsonl", schema=schema, event_time="at", lateness="2s", follow=True, name="orders"
    )
    totals = (
        orders.group_by("customer", "kind", month=fs.window("at", every="1mo"))
        .agg(total=fs.col("amount").sum(), orders=fs.len())
        .view("totals")
    )
    with fs.start(totals, snapshots=folder / "snapshots", every="1s", client=client, name=request.param) as job:
        shop.start()
        with fs.connect(snapshots=folder / "snapshots") as shop.reads:
            yield job
            shop.stopping.set()
            shop.join()


def kill(client: Client, job: fs.Job) -> None:
    """The worker that has partition 0."""
    os.kill(client.run(os.getpid)[job.status()["partitions"]["0"]["worker"]], signal.SIGKILL)


def kept(tmp_path: Path, name: str, frames: list[tuple[list[Row], float]], title: str, lines: int) -> None:
    folder = Path(FOLDER or tmp_path)
    for suffix, theme in (("", LIGHT), ("-dark", DARK)):
        drawn = svg(frames, theme, title, COLUMNS, lines)
        assert len(drawn) < 1_000_000
        root = ElementTree.fromstring(drawn)
        assert [each.text for each in root.iter() if each.tag.endswith("}title")] == [title]
        (folder / f"{name}{suffix}.svg").write_text(drawn)


class Film:
    """What a terminal shows after each whole painting of its screen, and for how long."""

    PAINTED = b"\x1b[J"

    def __init__(self, terminal: AtTerminal, lines: int) -> None:
        self._terminal, self._grid, self._fed = terminal, Grid(COLUMNS, lines), 0
        self._seen: list[tuple[list[Row], float]] = []

    def look(self) -> str:
        """The newest screen."""
        end = self._terminal.sees()
        whole = self._terminal.shown.rfind(self.PAINTED, self._fed, end) + len(self.PAINTED)
        if whole >= len(self.PAINTED):
            self._grid.feed(self._terminal.shown[self._fed : whole].decode())
            self._fed = whole
            self._seen.append((self._grid.rows(), time.monotonic()))
        return self._grid.text()

    def frames(self) -> list[tuple[list[Row], float]]:
        """None lasts longer than a second and a half, but the last."""
        ends = [at for _, at in self._seen[1:]]
        return [
            (rows, min(end - at, 1.5)) for (rows, at), end in zip(self._seen[:-1], ends, strict=True)
        ] + [(self._seen[-1][0], 3.0)]  # fmt: skip


@pytest.mark.parametrize("job", ["orders"], indirect=True)
def test_a_worker_is_killed_before_the_eyes_of_top(client: Client, job: fs.Job, folder: Path, tmp_path: Path) -> None:
    lines = 18
    with AtTerminal("top", str(folder / "snapshots"), "--every", "0.25", columns=COLUMNS, lines=lines) as top:
        film = Film(top, lines)
        until(lambda: "snapshot" in film.look() and " 0 rows/s" not in film.look(), 60, says=film.look)
        film = Film(top, lines)
        busy = time.monotonic() + CALM
        until(lambda: film.look() and time.monotonic() > busy)
        kill(client, job)
        until(lambda: "is back after" in film.look() and "! " not in film.look(), 60, says=film.look)
        calm = time.monotonic() + CALM
        until(lambda: film.look() and time.monotonic() > calm)
    frames = film.frames()
    assert len({frozenset(enumerate(rows)) for rows, _ in frames}) > 3, "it moves"
    kept(tmp_path, "top", frames, "flowstate top snapshots/", lines)


@pytest.mark.parametrize("job", ["shop"], indirect=True)
def test_a_question_at_the_prompt(job: fs.Job, folder: Path, tmp_path: Path) -> None:
    lines = 20
    until(lambda: job.sql("select count(*) from totals").fetchall()[0][0] == len(CUSTOMERS) * len(PRICES))
    with AtTerminal(
        "sql", str(folder / "snapshots"), columns=COLUMNS, lines=lines, XDG_STATE_HOME=str(tmp_path)
    ) as prompt:
        prompt.sees("totals", ">")
        at = prompt.presses("select kind, sum(total) as total from totals group by kind order by total desc;\r")
        prompt.sees("3 rows", after=at)
        at = prompt.presses("select customer, total, orders from totals where kind = 'tea' order by totl;\r")
        prompt.sees("not found", after=at)
        at = prompt.presses(
            "select customer, total, orders from totals where kind = 'tea' order by total desc limit 3;\r"
        )
        end = prompt.sees("3 rows", after=at)
        grid = Grid(COLUMNS, lines)
        grid.feed(prompt.shown[:end].decode(errors="replace"))
    kept(tmp_path, "sql", [(grid.rows(), 1.0)], "flowstate sql snapshots/", lines)


if FOLDER:  # what they show is tested elsewhere

    @pytest.mark.browser
    @pytest.mark.parametrize("job", ["sales"], indirect=True)
    def test_the_dashboard_and_a_notebook(client: Client, job: fs.Job, folder: Path, browser: Browser) -> None:
        assert FOLDER is not None
        place = str(client.dashboard_link).removesuffix("/status")
        page = browser.open(f"{place}/flowstate", height=1000)
        page.shows("every partition is live, and none is late")
        calm = time.monotonic() + 20
        until(lambda: time.monotonic() > calm, 40)
        kill(client, job)
        page.shows("is back after")
        calm = time.monotonic() + 12
        until(lambda: time.monotonic() > calm, 40)
        page.shows("every partition is live, and none is late")
        page.picture(Path(FOLDER) / "dashboard.png")
        cells = [
            ("job", job._repr_html_()),
            ('job["totals"]', job["totals"]._repr_html_()),
        ]  # fmt: skip
        style = (
            "body{font:15px sans-serif;margin:24px}pre{border:1px solid #8886;border-radius:4px;padding:8px 12px;margin:12px 0 8px}"
            "pre::before{content:'In:  ';opacity:.5}"
        )
        shown = "".join(f"<pre>{code}</pre>{output}" for code, output in cells)
        path = folder / "notebook.html"
        path.write_text(
            f"<!doctype html><meta charset=utf-8><meta name=color-scheme content='light dark'><style>{style}</style>{shown}"
        )
        for suffix, dark in (("", False), ("-dark", True)):
            seen = browser.open(path.as_uri(), width=900, height=620, dark=dark)
            seen.shows("totals")
            seen.picture(Path(FOLDER) / f"notebook{suffix}.png")


def test_what_a_terminal_does_with_signs() -> None:
    grid = Grid(10, 3)
    grid.feed("one\r\n\x1b[1;31mred\x1b[0m\r\n\x1b[2Athe\x1b[K\x1b[2B\rend\x1b[2D!\r\nmore")
    assert grid.text() == "red\ne!d\nmore"
    assert grid.rows()[0][:4] == (*((sign, Style(1, bold=True)) for sign in "red"), (" ", PLAIN))
    grid.feed("\x1b[H\x1b[Jtop\x1b[38;2;1;2;3m\x1b[7m!")
    assert grid.text() == "top!"
    assert grid.rows()[-1][3] == ("!", Style(reversed=True))
    told = svg([(grid.rows(), 1.0), ([], 2.0)], LIGHT, "a < b", 10, 3)
    ElementTree.fromstring(told)
    assert "0.000%" in told
    assert "33.333%" in told
