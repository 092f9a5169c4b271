"""The page "Flowstate" in Dask's dashboard. Each browser has its own document; all of them show what the scheduler keeps (`history`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bokeh.layouts import column, gridplot, row
from bokeh.models import (
    ColumnDataSource,
    Div,
    HoverTool,
    LabelSet,
    Legend,
    LegendItem,
    NumeralTickFormatter,
    Range1d,
    Select,
)
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env

from flowstate.dashboard import words
from flowstate.dashboard.history import EVERY, MOMENTS, SUMS, Moment

if TYPE_CHECKING:
    from distributed import Scheduler

    from flowstate.dashboard.scheduler import Dashboard, Watched

#: Lines of one chart; of more, the greatest, the least and the middle one are drawn, and where that means something, their sum.
LINES = 10
SPAN = MOMENTS * EVERY * 1000  # milliseconds
TITLES = {
    "rows": ("Rows applied per second, by partition", "0,0.[0]a"),
    "lag": ("Lag by split: offsets to its end that are not applied yet", "0,0.[0]a"),
    "delay": ("Watermark delay by partition, seconds", "0,0.[0]"),
    "bytes": ("State by partition, bytes", "0.[0]a"),
    "age": ("Age of what is saved by partition, seconds", "0,0.[0]"),
    "queries": ("Queries per second, by partition", "0,0.[0]a"),
}
#: Part of the time axis at its right edge that has no room for a word.
EDGE = 0.15
#: Charts that say which line is which, and what happened.
WORDED = ("rows", "lag")
SMALL: dict[str, Any] = {
    "label_text_font_size": "10px", "label_height": 10, "glyph_height": 10, "glyph_width": 14, "padding": 2, "margin": 2, "spacing": 6,
    "border_line_color": None, "background_fill_alpha": 0.6, "ncols": LINES // 2,
}  # fmt: skip


class Chart:
    """One measure over time, and the events over it."""

    def __init__(self, measure: str, shared: Any, events: ColumnDataSource) -> None:
        title, form = TITLES[measure]
        self.measure, self.worded = measure, measure in WORDED
        self.root = figure(
            title=title, x_axis_type="datetime", x_range=shared, height=210, min_width=380, sizing_mode="stretch_width",
            tools="", toolbar_location=None, name=f"chart-{measure}",
        )  # fmt: skip
        self.root.yaxis.formatter = NumeralTickFormatter(format=form)
        self.root.y_range.start = 0
        self.root.y_range.only_visible = True
        marks = self.root.vspan(x="at", line_color="color", line_width=1.5, line_dash="dashed", source=events)
        self.root.add_tools(HoverTool(renderers=[marks], tooltips=[("", "@words")]))
        if self.worded:
            short = {"text": "short", "text_color": "color", "text_font_size": "11px", "y_offset": 2}
            short |= {"text_align": "side", "x_offset": "offset"}
            self.root.add_layout(LabelSet(x="at", y="top", y_units="screen", source=events, **short))
            self.legend = Legend(orientation="horizontal", location="top_left", **SMALL)
            self.root.add_layout(self.legend)
        self.source = ColumnDataSource({"at": []})
        self.labels: Mapping[str, str] = {}  # of splits
        self._names: tuple[str, ...] | None = None
        self._lines: list[Any] = []

    def begin(self, moments: Sequence[Moment]) -> None:
        """Draw all of it anew."""
        names = dict.fromkeys(name for each in moments for name in each.rows[self.measure].names)
        self._draw(tuple(names))
        self.source.data = self._columns(moments)
        self._entitle()

    def go_on(self, moments: Sequence[Moment], all_moments: Sequence[Moment]) -> None:
        """With some new moments. A name that was not there before draws everything anew."""
        assert self._names is not None
        if any(name not in self._names for each in moments for name in each.rows[self.measure].names):
            self.begin(all_moments)
        else:
            self.source.stream(self._columns(moments), rollover=MOMENTS)
            self._entitle()

    def _entitle(self) -> None:
        """An empty chart says that it is meant to be empty."""
        known = any(not math.isnan(number) for name in self._series() for number in self.source.data[name])
        title = TITLES[self.measure][0] + ("" if known else ": nothing to show")
        if self.root.title.text != title:
            self.root.title.text = title

    def _draw(self, names: tuple[str, ...]) -> None:
        if names == self._names:
            return
        self._names = names
        self.root.renderers = [each for each in self.root.renderers if each not in self._lines]
        drawn = self._series()
        self.source.data = {"at": [], **{each: [] for each in drawn}}
        self._lines = [
            self.root.line("at", each, source=self.source, line_width=1.8, color=Category10_10[place % 10], name=each)
            for place, each in enumerate(drawn)
        ]
        items = [
            LegendItem(label=self._label(each), renderers=[line]) for each, line in zip(drawn, self._lines, strict=True)
        ]
        if self.worded:
            self.legend.items = items

    def _series(self) -> list[str]:
        assert self._names is not None
        if len(self._names) <= LINES:
            return list(self._names)
        return ["greatest", "middle", "least", *(["all"] if self.measure in SUMS else [])]

    def _label(self, series: str) -> str:
        if self.measure == "lag":
            return words.shortened(self.labels.get(series) or series, 24)
        return f"partition {series}" if series.isdecimal() else series

    def _columns(self, moments: Sequence[Moment]) -> dict[str, list[float]]:
        assert self._names is not None
        found: dict[str, list[float]] = {"at": [each.at * 1000 for each in moments]}
        rows = [dict(zip(*each.rows[self.measure], strict=True)) for each in moments]
        if len(self._names) <= LINES:
            return found | {name: [each.get(name, math.nan) for each in rows] for name in self._names}
        known = [[number for number in each.values() if not math.isnan(number)] or [math.nan] for each in rows]
        kinds: dict[str, Callable[[list[float]], float]] = {"greatest": max, "middle": median, "least": min, "all": sum}
        return found | {name: [kinds[name](each) for each in known] for name in self._series()}


class Page(DashboardComponent):
    """Of one browser."""

    def __init__(self, dashboard: Dashboard, wanted: str | None) -> None:
        self.dashboard, self.wanted = dashboard, wanted
        self.head = Div(name="head", sizing_mode="stretch_width")
        self.wrong = Div(name="troubles", sizing_mode="stretch_width")
        self.table = Div(name="partitions", sizing_mode="stretch_width")
        self.told = Div(name="events", sizing_mode="stretch_width")
        self.select = Select(title="Job", options=[], visible=False, name="job", width=260)
        self.select.on_change("value", self._selected)
        self.source = ColumnDataSource(
            {name: [] for name in ("at", "words", "short", "color", "top", "side", "offset")}
        )
        now = dashboard.clock.wall() * 1000
        self.range = Range1d(now - SPAN, now)
        self.charts = [Chart(each, self.range, self.source) for each in TITLES]
        grid = gridplot(
            [[each.root for each in self.charts[at : at + 2]] for at in range(0, len(self.charts), 2)],
            sizing_mode="stretch_width", toolbar_location=None, merge_tools=False,
        )  # fmt: skip
        self.grid = column(grid, sizing_mode="stretch_width", visible=False)
        self.root = column(
            row(self.head, self.select, sizing_mode="stretch_width"), self.wrong, self.grid, self.told, self.table,
            sizing_mode="stretch_width", styles={"padding": "0 12px"},
        )  # fmt: skip
        self._shown: Watched | None = None
        self._at = 0.0
        self._events: tuple[float, int] | None = None
        self.update()

    def _selected(self, attribute: str, old: str, new: str) -> None:
        self.wanted = new
        self.update()

    def update(self) -> None:
        jobs = self.dashboard.jobs
        names = list(jobs)
        if self.select.options != names:
            self.select.options, self.select.visible = names, len(names) > 1
        if not names:
            self._put(self.head, words.no_job())
            return
        name = self.wanted if self.wanted in jobs else names[-1]
        if self.select.value != name:
            self.select.value = name
        watched = jobs[name]
        if watched.now:
            self._show(watched)

    def _show(self, watched: Watched) -> None:
        moments = watched.history.since(self._at if watched is self._shown else 0.0)
        if watched is not self._shown:
            self._shown, self._events = watched, None
            for each in self.charts:
                each.labels = {split: said["label"] for split, said in watched.now["splits"].items()}
                each.begin(moments)
        elif moments:
            for each in self.charts:
                each.go_on(moments, watched.history.moments)
        if moments:
            self._at = moments[-1].at
        now = self.dashboard.clock.wall() * 1000
        first = watched.history.moments[0].at * 1000 if watched.history.moments else now
        self.range.update(start=max(now - SPAN, min(first, now - 60_000)), end=now)
        self.grid.visible = True
        self._put(self.head, words.head(watched.now, watched.looks))
        self._put(self.wrong, words.wrong(watched.now, watched.troubles))
        self._put(self.table, words.partitions(watched.now, watched.looks))
        self._show_events(watched)

    def _show_events(self, watched: Watched) -> None:
        happenings = watched.history.happened()
        edge = self.range.end - EDGE * (self.range.end - self.range.start)
        right = [
            each.at * 1000 > edge for each in happenings
        ]  # at the right edge a word stands to the left of its mark
        # Of two marks that are appended, the later one may be the older.
        key = sum(each.at for each in happenings), sum(right)
        if key == self._events:
            return
        self._events = key
        self._put(self.told, words.events(happenings))
        self.source.data = {
            "at": [each.at * 1000 for each in happenings],
            "words": [f"{words.clock(each.at)} {each.words}" for each in happenings],
            "short": words.short(happenings),
            "color": [words.COLORS[each.kind] for each in happenings],
            "top": [82 - 13 * (place % 3) for place in range(len(happenings))],
            "side": ["right" if each else "left" for each in right],
            "offset": [-3 if each else 3 for each in right],
        }

    @staticmethod
    def _put(place: Div, text: str) -> None:
        if place.text != text:
            place.text = text


def page(scheduler: Scheduler, extra: Any, doc: Any) -> None:
    """What Bokeh calls for every browser; ``?job=`` chooses the job."""
    from flowstate.dashboard.scheduler import NAME

    arguments = doc.session_context.request.arguments if doc.session_context else {}
    wanted = [each.decode(errors="replace") for each in arguments.get("job", [])]
    shown = Page(scheduler.plugins[NAME], wanted[0] if wanted else None)
    doc.title = "Dask: Flowstate"
    doc.add_root(shown.root)
    add_periodic_callback(doc, shown, int(EVERY * 1000))
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME
