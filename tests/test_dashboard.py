"""The page "Flowstate" in Dask's dashboard, in a browser, beside a real job; and what it is made of."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from browser import Browser, Page
from distributed import Client
from waiting import until as until_within

import flowstate as fs
from flowstate.clock import ManualClock
from flowstate.dashboard import words
from flowstate.dashboard.history import HAPPENINGS, MOMENTS, NAMES, OTHERS, History
from flowstate.dashboard.judging import HELD, LINGERS, RECENT, Causes, Trouble
from flowstate.dashboard.looking import Looks
from flowstate.plan.position import NEVER
from flowstate.runtime.journal import Happening, Journal

until = partial(until_within, seconds=60.0)
SCHEMA = pa.schema({"key": pa.string(), "n": pa.int64()})
#: Looks after which a split counts as silent.
HELD_FOR = int(HELD) + 2

# its parts


def partition(**said: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "state": "live", "reason": None, "epoch": 1, "reported": 1, "worker": "tcp://1", "position": {"a": 10}, "applied": 0,
        "appended": 0, "keys": {"v": 2}, "bytes": 100, "delay": 1.0, "age": 2.0, "queries": 0, "filling": [], "problems": {},
        "sinks": [], "letters": {}, "damaged": [],
    }  # fmt: skip
    return plain | said


def seen(at: float, partitions: dict[str, Any], **said: Any) -> dict[str, Any]:
    places = [each["position"]["a"] for each in partitions.values()]
    split = {
        "label": "topic[0]",
        "reader": 0,
        "applied": min(places),
        "farthest": max(places),
        "end": max(places),
        "lag": 0,
        "watermark": None,
        "idle": False,
        "waits": [],
    }
    splits = {"a": split}
    plain: dict[str, Any] = {"job": "job", "run": 1, "state": "running", "ready": True, "paused": None, "problems": {}}
    return plain | {"saved_cut": {}, "idle_after": 60.0, "at": at, "partitions": partitions, "splits": splits} | said


def looked(*looks: dict[str, Any]) -> Looks:
    found = Looks()
    for each in looks:
        found.add(each)
    return found


def test_history_is_bounded_in_time_and_in_names() -> None:
    history = History()
    for second in range(MOMENTS + 100):
        figures = {"rows": dict.fromkeys(map(str, range(3 * NAMES)), 1.0), "lag": {str(n): n for n in range(3 * NAMES)}}
        history.add(float(second), figures)
    assert len(history.moments) == MOMENTS
    last = history.moments[-1]
    for measure, total in {"rows": 3 * NAMES, "lag": sum(range(3 * NAMES))}.items():
        names, numbers = last.rows[measure]
        assert len(names) == NAMES + 1
        assert sum(numbers) == total
        assert names[-1] == OTHERS
        assert names is history.moments[0].rows[measure].names  # once for all of them
    assert [each.at for each in history.since(MOMENTS + 97)] == [MOMENTS + 98, MOMENTS + 99]
    journal = Journal(ManualClock())
    for number in range(3 * HAPPENINGS):
        journal.note("began", str(number))
        history.happenings.append(journal.happenings[-1])
    assert len(history.happenings) == HAPPENINGS


def test_the_age_of_others_is_that_of_the_oldest() -> None:
    history = History()
    history.add(0.0, {"age": {str(n): float(n) if n else None for n in range(NAMES + 10)}})
    names, numbers = history.moments[0].rows["age"]
    assert dict(zip(names, numbers, strict=True))[OTHERS] == 9.0
    history.add(1.0, {"age": {"0": None}})
    assert math.isnan(history.moments[1].rows["age"].numbers[0])


def test_rates_are_of_some_seconds_and_begin_anew_with_an_incarnation() -> None:
    looks = looked(
        seen(0.0, {"0": partition(applied=100, queries=5)}),
        seen(1.0, {"0": partition(applied=300, queries=5)}),
        seen(2.0, {"0": partition(applied=300, queries=5, state="starting", epoch=2)}),
        seen(4.0, {"0": partition(applied=100, queries=3, epoch=2, reported=2)}),
    )
    assert looks.rate("0") == ((200 + 100) / 4.0, 3 / 4.0)
    assert looked(seen(0.0, {"0": partition()})).rate("0") == (None, None)


def test_of_one_that_is_away_only_the_age_of_what_it_saved_is_known() -> None:
    away = partition(state="starting", reason="its worker was lost", age=7.0)
    looks = looked(seen(0.0, {"0": partition(), "1": partition()}), seen(1.0, {"0": partition(), "1": away}))
    figures = looks.figures()
    assert (figures["age"]["1"], figures["rows"]["1"], figures["bytes"]["1"]) == (7.0, None, None)
    assert looks.troubles() == ["partition 1 is away; what it saved 7 s ago answers: its worker was lost"]


def test_what_is_late_is_told_by_its_place() -> None:
    def at(first: int, second: int) -> dict[str, Any]:
        return {"0": partition(position={"a": first}), "1": partition(position={"a": second})}

    assert looked(seen(0.0, at(50, 50)), seen(1.0, at(90, 50)), seen(2.0, at(130, 51))).troubles() == []
    late = looked(seen(0.0, at(100, 50)), seen(1.0, at(110, 60)), seen(2.0, at(120, 70))).troubles()
    assert late == ["partition 1 is late: in split topic[0] it is 30 before where another one was 2 s ago"]


def split_of(**said: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "label": "topic[0]", "reader": 0, "applied": 0, "farthest": 0, "end": 0, "lag": 0, "watermark": None, "idle": False, "waits": [],
    }  # fmt: skip
    return plain | said


def test_a_split_that_needs_long_for_what_it_lacks_is_told_with_who_reads_it() -> None:
    def looks(lag: int, each: int, grows: int = 0, waits: list[int] | None = None, count: int = 4) -> list[str]:
        def split(n: int) -> dict[str, Any]:
            return {"a": split_of(applied=n * each, farthest=n * each, lag=lag + n * grows, waits=waits or [])}

        return looked(*(seen(float(n), {"0": partition()}, splits=split(n)) for n in range(count))).troubles()

    reads = "partition 0 on tcp://1 reads it"
    assert looks(900, 100) == []
    assert looks(5000, 100) == [f"split topic[0] is behind its log by 5000; at 100 a second it needs 50 s: {reads}"]
    (grows,) = looks(5000, 100, grows=7, waits=[1])
    assert "by 5021, and by 7 more each second" in grows
    assert "waits until partition 1 has taken its rows" in grows and "more partitions" in grows
    (stands,) = looks(50, 0)
    assert stands.startswith(f"split topic[0] is behind its log by 50, and nothing of it is read just now: {reads}")


def test_a_split_that_is_behind_is_told_for_a_while_since_rows_are_applied_in_lumps() -> None:
    def at(n: int, applied: int) -> dict[str, Any]:
        return seen(float(n), {"0": partition()}, splits={"a": split_of(applied=applied, farthest=applied, lag=500)})

    looks = looked(*(at(n, 0) for n in range(4)))
    assert looks.troubles()
    for n in range(4, 20):
        looks.add(at(n, 5000 * n))
        assert bool(looks.troubles()) == (n - 3 <= LINGERS), n


def test_the_split_that_holds_the_watermark_back_is_told() -> None:
    def looks(seconds: int, *, ahead: float, newest: int | None = 0, moves: bool = False, **said: Any) -> list[str]:
        def at(n: int) -> dict[str, Any]:
            quiet = split_of(label="b", applied=n * moves, watermark=newest, **said)
            return {"a": split_of(label="a", applied=n, watermark=int(ahead * 1e6)), "b": quiet}

        return looked(*(seen(float(n), {"0": partition()}, splits=at(n)) for n in range(seconds))).troubles()

    assert looks(HELD_FOR - 1, ahead=100.0) == [], "not silent for long"
    assert looks(HELD_FOR, ahead=9.0) == []
    (silent,) = looks(HELD_FOR, ahead=100.0)
    assert silent.startswith("split b holds the watermark back by 100 s: nothing came of it for 11 s;")
    assert silent.endswith("or until it counts as idle (idle_after=60 s)")
    (never,) = looks(HELD_FOR, ahead=100.0, newest=NEVER)
    assert never.startswith("split b holds the watermark back: it has had no row yet")
    (old,) = looks(HELD_FOR, ahead=7200.0, moves=True)
    assert old.startswith("split b holds the watermark back by 2 h: its rows are so much older")
    assert looks(HELD_FOR, ahead=100.0, idle=True) == [], "its floor moves with the others"
    (behind,) = looks(HELD_FOR, ahead=100.0, lag=1_000_000)
    assert "is behind its log" in behind, "what it lacks says why"
    assert looks(HELD_FOR, ahead=100.0, newest=None) == [], "it has no event time"


def test_letters_are_told_by_their_splits_while_they_are_new() -> None:
    def at(second: float, *counts: int) -> dict[str, Any]:
        parts = {
            str(number): partition(letters={"dead_letters": {"a": count}, "v_late": {"gone": 2}} if count else {})
            for number, count in enumerate(counts)
        }
        return seen(second, parts)

    looks = looked(at(0.0, 5, 0))
    assert looks.troubles() == [], "they were there before"
    looks.add(at(1.0, 5, 2))
    dead, late = looks.troubles()
    assert dead.startswith("records that became dead letters: 2 of topic[0] (just now), counted in no total;")
    assert "select reason" in dead
    assert late.startswith("rows that came too late for their window in view v: 2 of gone (just now)")
    looks.add(at(100.0, 0, 2))  # one that is away tells nothing: less than before is no news
    assert len(looks.troubles()) == 2
    looks.add(at(RECENT + 2.0, 5, 2))
    assert looks.troubles() == []
    looks.add(at(RECENT + 3.0, 5, 3))
    assert "1 of topic[0] (just now)" in looks.troubles()[0]


def test_one_cause_of_many_partitions_and_splits_is_one_sentence() -> None:
    def at(second: float) -> dict[str, Any]:
        parts = {}
        for number in range(6):
            full = f"Unavailable: no space left; free some retry_after=10.0 path='/p{number}'"
            away = f"Unavailable: no answer from the kafka broker (refused after {number} ms); check bootstrap= retry_after=1.0"
            parts[str(number)] = partition(problems={"snapshot": full, f"t/{number}": away})
        return seen(second, parts, splits={f"t/{n}": split_of(label=f"t[{n}]", reader=n, lag=9) for n in range(6)})

    who = "partitions 0, 1, 2 and 3 more, for 4 s"
    broker = "no answer from the kafka broker (refused after 0 ms); check bootstrap="
    assert looked(*(at(float(n)) for n in range(5))).troubles() == [
        f"what is applied cannot be saved ({who}): no space left; free some path='/p0'",
        f"splits t[0], t[1], t[2] and 3 more cannot be read ({who}): {broker}",
    ], "and not that they are behind"


def test_a_cause_that_stands_is_marked_and_so_is_its_end() -> None:
    causes, full = Causes(), [Trouble("not saved (partition 0, for 3 s): full", "snapshot", "not saved")]
    flash = [Trouble("a flash", "behind a", "behind")]
    found = [list(causes.add(float(n), [*(full if n < 8 else []), *(flash if n == 3 else [])])) for n in range(12)]
    marks = [each for some in found for each in some]
    assert [(each.kind, each.at, each.words) for each in marks] == [
        ("trouble", 0.0, "not saved (partition 0): full"),
        ("mended", 7.0, "over after 7 s: not saved (partition 0): full"),
    ]
    assert words.short(marks) == ["not saved", "not saved over, 7.0 s"]


def test_a_job_that_was_stopped_has_no_other_trouble() -> None:
    gone = partition(state="vacant", reason="its worker was lost")
    assert looked(seen(0.0, {"0": gone}, state="stopped")).troubles() == ["the job was stopped"]
    paused = looked(seen(0.0, {"0": partition()}, paused="output waits for sinks beyond the quota"))
    assert paused.troubles() == ["output waits for sinks beyond the quota"]


def test_what_comes_from_outside_is_text() -> None:
    evil = "<script>alert(1)</script>"
    away = partition(state="failed", reason=evil, worker=evil)
    looks = looked(seen(0.0, {"0": away}, job=evil), seen(1.0, {"0": away}, job=evil))
    now = seen(1.0, {"0": away}, job=evil)
    pieces = [words.head(now, looks), words.wrong(now, looks.troubles()), words.partitions(now, looks)]
    pieces.append(words.events([Happening(1, 0.0, "lost", evil, 0)]))
    for each in pieces:
        assert "<script" not in each
        assert "&lt;script&gt;" in each


def test_marks_that_are_close_to_each_other_have_one_word() -> None:
    lost = [Happening(n, 10.0 + n / 10, "lost", "", n) for n in range(3)]
    back = [Happening(5, 11.0, "back", "", 1, 0.8), Happening(6, 30.0, "back", "", 0, 19.9)]
    assert words.short([*lost, *back]) == ["3 partitions lost", "", "", "p1 back 0.8 s", "p0 back 19.9 s"]


def test_that_the_job_is_down_comes_first() -> None:
    away = partition(state="claiming", reason="its worker was lost", age=3.0)
    told = looked(seen(0.0, {"0": away}, problems={"fence": "the store is away"})).troubles()
    assert told == [
        "the job is down: no partition is live",
        "partition 0 is away; what it saved 3 s ago answers: its worker was lost",
        "it could not be seen whether a newer run has begun: the store is away",
    ]


# in a browser


def rows(path: Path, count: int, since: int = 0) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"key": f"key {n % 100}", "n": n}) + "\n" for n in range(since, since + count))


def begin(client: Client, folder: Path, name: str) -> fs.Job:
    (folder / name).mkdir(exist_ok=True)
    logs = folder / name / "log.jsonl"
    if not logs.exists():
        rows(logs, 1000)
    events = fs.scan_files(logs, format="json", schema=SCHEMA, follow=True)
    totals = events.group_by("key").agg(total=fs.col("n").sum()).view("totals")
    return fs.start(totals, snapshots=folder / name / "saved", every="1s", name=name, client=client)


def place(client: Client) -> str:
    return str(client.dashboard_link).removesuffix("/status")


def told(client: Client, seconds: int = 0) -> Any:
    with urllib.request.urlopen(f"{place(client)}/flowstate.json?seconds={seconds}", timeout=60) as answer:
        return json.load(answer)["jobs"]


def table(page: Page) -> dict[str, dict[str, str]]:
    """The partitions as the page shows them, by number."""
    lines = page.text().split("\npartition\n", 1)[1].splitlines()
    script = """(() => {
      const find = (node) => node.tagName === "TABLE" && node.innerText.startsWith("partition") ? node :
        [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children].map(find).find((each) => each);
      return [...find(document.body).rows].map((row) => [...row.cells].map((cell) => cell.innerText));
    })()"""
    assert lines
    heads, *found = page.run(script)
    return {line[0]: dict(zip(heads, line, strict=True)) for line in found}


def events_of(page: Page) -> list[str]:
    """Words of the marks on the time axes."""
    script = """Bokeh.documents[0].get_model_by_name("chart-queries").renderers
      .filter((each) => each.glyph.type === "VSpan").flatMap((each) => [...each.data_source.data.words])"""
    return list(page.run(script))


@pytest.mark.browser
def test_the_page_of_a_running_job_whose_worker_is_killed(client: Client, browser: Browser, tmp_path: Path) -> None:
    with begin(client, tmp_path, "orders") as job:
        page = browser.open(f"{place(client)}/flowstate", height=1100)
        page.shows("every partition is live, and none is late")

        def equal() -> bool:
            status = job.status()["partitions"]
            shown = {number: (each["state"], each["epoch"], each["keys"]) for number, each in table(page).items()}
            reports = {number: (each, each["report"]) for number, each in status.items()}
            return shown == {
                number: (each["state"], str(each["epoch"]), str(report["keys"]["totals"]))
                for number, (each, report) in reports.items()
            }

        page.shows("100 keys")
        until(equal, says=lambda: (page.text(), job.status()))
        page.shows("lag 0")
        now = until(lambda: (found := told(client)["orders"]["now"])["saved_cut"] and found)
        reports = {number: each["report"] for number, each in job.status()["partitions"].items()}
        assert {number: each["applied"] for number, each in now["partitions"].items()} == {
            number: each["rows"] for number, each in reports.items()
        }

        killed = str(now["partitions"]["0"]["worker"])
        os.kill(client.run(os.getpid)[killed], signal.SIGKILL)
        shown = page.shows("partition 0 is back after")
        assert "partition 0 was lost: its worker was lost" in shown
        assert shown.count("its worker was lost") >= 2
        until(lambda: any("partition 0 is back after" in each for each in events_of(page)))
        page.shows("every partition is live, and none is late")
        until(equal, says=lambda: (page.text(), job.status()))

        # Who comes late sees what was before, in a window of their own.
        late = browser.open(f"{place(client)}/flowstate")
        late.shows("partition 0 is back after")
        first = "Bokeh.documents[0].get_model_by_name('chart-rows').renderers.find((r) => r.glyph.type === 'Line').data_source.data.at[0]"
        assert late.run(first) == page.run(first)
        late.close()
        page.picture(Path(os.environ.get("FLOWSTATE_PICTURES", tmp_path)) / "dashboard.png")

    page.shows("the job was stopped")
    assert browser.complaints == []


@pytest.mark.browser
def test_several_jobs_and_one_that_comes_again(client: Client, browser: Browser, tmp_path: Path) -> None:
    first = begin(client, tmp_path, "first")
    second = begin(client, tmp_path, "second")
    try:
        until(lambda: {"first", "second"} <= told(client).keys())
        page = browser.open(f"{place(client)}/flowstate?job=first")
        page.shows("first")
        page.shows("every partition is live")
        names = "Bokeh.documents[0].get_model_by_name('job').options"
        assert {"first", "second"} <= set(page.run(names))
        page.run("Bokeh.documents[0].get_model_by_name('job').value = 'second'")
        page.shows("second run 1")
        first.stop()
        other = browser.open(f"{place(client)}/flowstate?job=first")
        other.shows("the job was stopped")
        first = begin(client, tmp_path, "first")
        assert "run 1 began" in other.shows("run 2 began")
        other.shows("every partition is live")
        history = told(client, 60)["first"]["history"]
        assert len(history["at"]) == len(history["rows"]["0"]) >= 2
        assert browser.complaints == []
    finally:
        first.stop()
        second.stop()


@pytest.mark.browser
def test_a_scheduler_has_the_page_before_there_is_a_job(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    command = [
        "scheduler",
        "--preload",
        "flowstate.dashboard",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--scheduler-file",
        str(file),
    ]
    with (tmp_path / "log").open("wb") as log:
        scheduler = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dask",
                *command,
                "--dashboard-address",
                "127.0.0.1:0",
                "--dashboard-prefix",
                "/deep/down",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            said = until(
                lambda: file.exists() and file.read_text().rstrip().endswith("}") and json.loads(file.read_text())
            )
            address = f"http://127.0.0.1:{said['services']['dashboard']}/deep/down"
            page = browser.open(f"{address}/status")
            page.shows("Flowstate")
            page.go(f"{address}/flowstate")
            page.shows("No job of flowstate has run on this cluster yet.")
            with urllib.request.urlopen(f"{address}/flowstate.json", timeout=60) as answer:
                assert json.load(answer) == {"jobs": {}}
        finally:
            scheduler.terminate()
            scheduler.wait(60)
    assert "flowstate/dashboard" not in (tmp_path / "log").read_text()  # in no traceback
