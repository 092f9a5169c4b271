"""What notebooks show: the two of examples/notebooks run from top to bottom, and everything that comes from data is text."""

from __future__ import annotations

import datetime
import os
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair
import nbformat
import pyarrow as pa
import pytest
from browser import Browser
from nbclient import NotebookClient

import flowstate as fs
from flowstate.api.notebook import job_html
from flowstate.errors import InvalidFlow
from flowstate.plan.position import Place
from flowstate.view import html, notebook
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.directory import ViewInfo

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples" / "notebooks").glob("*.ipynb"))
EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """The tags of a text, which must be closed in order, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def answered(data: pa.Table, origin: Any = "live", splits: int = 1) -> pa.Table:
    position = {f"{EVIL}/{number}": Place(number + 7, 0) for number in range(splits)}
    part = PartitionAnswer(0, 1, position, 1_767_225_600_000_000, 100.0, origin)
    return data.replace_schema_metadata(Answer("job", "view", (part,)).attach(data.schema).metadata)


def test_rows_are_text_and_bounded() -> None:
    long = pa.table({EVIL: [EVIL * 10] * 50, "n": [None, *range(49)], "d": [Decimal("1.50")] * 50})
    found = Tags(html.rows(answered(long, splits=5), now=100.0))
    assert "script" not in found.seen
    assert found.seen.count("tr") == 1 + html.MOST_ROWS
    assert "the first 20 rows of 50" in found.words
    assert "live · watermark 2026-01-01 00:00:00Z · up to " in found.words
    assert "and 2 splits more" in found.words
    assert "null" in found.words
    assert "1.50" in found.words
    wide = pa.table({f"c{number}": [1] for number in range(100)})
    assert "and 70 more" in Tags(html.rows(wide, now=0.0)).words


def test_saved_rows_say_their_age() -> None:
    at = pa.array([datetime.datetime(2026, 1, 1, 12, 30, tzinfo=datetime.UTC)], pa.timestamp("ns", "UTC"))
    found = Tags(
        html.rows(answered(pa.table({"at": at, "t": at.cast(pa.timestamp("ms", "UTC"))}), "saved"), now=112.34)
    )
    assert "from what was saved, 12.3 s old" in found.words
    assert "2026-01-01 12:30:00Z" in found.words
    assert "1 row " in found.words


def test_a_flow_is_drawn_and_a_job_is_a_table() -> None:
    rows = fs.from_arrow(pa.table({"<k>": ["a"], "n": [1]}))
    view = rows.group_by("<k>").agg(total=fs.col("n").sum()).view("totals")
    drawn = Tags(view._repr_html_())
    assert drawn.seen[0] == "svg"
    assert "totals" in drawn.words
    report = {"rows": 1200, "keys": {"totals": 3}, "watermark": 1_767_225_600_000_000, "snapshot": {"at": 1.0}}
    status = {
        "state": "running",
        "problems": {"split": EVIL},
        "saved_cut": {"number": 3, "at": 1.0},
        "partitions": {"10": {"state": "live", "epoch": 2, "report": report}, "9": {"state": "failed", "report": {}}},
        "splits": {"a": {"label": EVIL}},
        "figures": {"troubles": [EVIL], "lag": {"a": 1234, "b": 0, "c": None}},
    }
    shown = Tags(job_html(EVIL, status))
    assert "script" not in shown.seen
    assert shown.seen.count("li") == 1, "one trouble, not twice"
    assert shown.words.index("9failed") < shown.words.index("10live21,20032026-01-01 00:00:00Z")
    assert f"{EVIL}1,234bnothingc" in shown.words
    assert "stopped" in Tags(job_html("job", {"state": "stopped", "problems": {}, "partitions": {}})).words


def test_plots() -> None:
    schema = pa.schema(
        {"customer": pa.string(), "kind": pa.int64(), "total": pa.decimal128(12, 2), "text": pa.string()}
    )
    info = ViewInfo("totals", schema, "keyed", ("customer", "kind"), ("customer", "kind"))
    rows = [{"customer": f"c{n % 30}", "kind": n, "total": Decimal(n), "text": "x"} for n in range(40)]
    chart = notebook.plot(pa.Table.from_pylist(rows, schema), info, None)
    assert isinstance(chart, altair.Chart)
    told = chart.to_dict()
    assert told["mark"]["type"] == "bar"
    assert len(told["data"]["values"]) == notebook.MOST_KEYS
    assert told["data"]["values"][-1] == {"key": "c9 / 39", "total": 39.0}
    with pytest.raises(InvalidFlow, match="one of the columns total"):
        notebook.plot(pa.Table.from_pylist(rows, schema), info, "text")

    at = pa.timestamp("ms", "UTC")
    schema = pa.schema({"customer": pa.string(), "month": at, "month_end": at, "events": pa.int64()})
    info = ViewInfo("monthly", schema, "keyed", ("customer", "month", "month_end"), ("customer",), "month")
    month = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    line = notebook.plot(
        pa.Table.from_pylist([{"customer": None, "month": month, "month_end": month, "events": 3}], schema), info, None
    )
    told = line.to_dict()
    assert told["mark"]["type"] == "line"
    assert told["data"]["values"] == [{"key": "None", "events": 3.0, "month": "2026-01-01T00:00:00+00:00"}]
    empty = notebook.plot(schema.empty_table(), info, "events").to_dict()
    assert empty["data"]["values"] == []


def test_outside_a_notebook_watching_is_refused() -> None:
    with pytest.raises(InvalidFlow, match="flowstate top"):
        notebook.watch(lambda: "", 0.1, None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(path: Path, tmp_path: Path) -> None:
    told = nbformat.read(path, 4)
    assert all(not cell.get("outputs") for cell in told.cells), "kept without what it has said"
    NotebookClient(told, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in told.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [each for each in outputs if each.output_type == "error" or each.get("name") == "stderr"] == []
    shown = "".join(
        each.get("data", {}).get("text/html", "") + each.get("data", {}).get("text/plain", "") for each in outputs
    )
    assert "Decimal('3.10')" in shown if path.stem == "live_totals" else "from what was saved" in shown
    assert re.search("<svg" if path.stem == "live_totals" else r"view balances", shown)


@pytest.mark.browser
def test_what_it_shows_is_looked_at(browser: Browser, tmp_path: Path) -> None:
    at = [datetime.datetime(2026, month, 1, tzinfo=datetime.UTC) for month in (1, 2, 3)]
    data = answered(
        pa.table({"customer": ["anna", EVIL, "ben"], "month": at, "total": [Decimal("12.50"), None, Decimal("80.00")]})
    )
    rows = fs.from_arrow(pa.table({"customer": ["a"], "n": [1]}))
    flow = rows.filter(fs.col("n") > 0).group_by("customer").agg(total=fs.col("n").sum()).view("totals")
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><meta name=color-scheme content='light dark'>{flow._repr_html_()}{html.rows(data, 100.0)}"
    )
    for dark in (False, True):
        shown = browser.open(page.as_uri(), width=900, height=500, dark=dark)
        text = shown.shows("3 rows")
        assert EVIL in text
        shown.picture(Path(os.environ.get("FLOWSTATE_PICTURES", tmp_path)) / f"notebook{'-dark' if dark else ''}.png")
    assert browser.complaints == []
