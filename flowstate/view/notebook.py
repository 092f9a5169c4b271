"""What happens in a notebook alone: something that is drawn anew in its place, again and again, and plots."""

from __future__ import annotations

import threading
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.clock import SystemClock
from flowstate.errors import InvalidFlow, Unavailable

if TYPE_CHECKING:
    from flowstate.view.directory import ViewInfo

#: Lines, and bars, that a plot has at most: the greatest.
MOST_KEYS = 20


class Html:
    """What a notebook shows as it stands."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return "(shown in a notebook)"


def watch(drawn: Callable[[], str], every: float, seconds: float | None) -> None:
    """`drawn` gives HTML; it is shown, and replaced every `every` seconds, until it is interrupted or `seconds` are over. What is away
    for a while is said, and shown again when it is back. Raises InvalidFlow outside a notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        raise InvalidFlow("watch() draws in a notebook; in a terminal there are flowstate top and flowstate tail")
    clock = SystemClock()
    end = None if seconds is None else clock.monotonic() + seconds
    last = drawn()
    shown: Any = display(Html(last), display_id=True)
    pause = threading.Event()
    try:
        while end is None or clock.monotonic() < end:
            pause.wait(every)
            try:
                last = drawn()
                shown.update(Html(last))
            except Unavailable as error:
                shown.update(Html(f"{last}<p><b>away:</b> {escape(error.message)}</p>"))
    except KeyboardInterrupt:
        pass  # that is how one stops watching


def plot(data: pa.Table, info: ViewInfo, column: str | None) -> Any:
    """An `altair.Chart`: a line for each key over the windows, or a bar for each key. `column` is the aggregate (default: the first that
    is a number). Raises InvalidFlow."""
    try:
        import altair
    except ImportError as error:
        raise InvalidFlow("plot() needs an extra: pip install 'flowstate[notebook]'", missing=error.name) from None
    numbers = [each.name for each in info.schema if each.name not in info.keys and _is_number(each.type)]
    if column is None and not numbers:
        raise InvalidFlow(f"view {info.name!r} has no column of numbers to plot")
    column = column or numbers[0]
    if column not in numbers:
        raise InvalidFlow(f"plot takes one of the columns {', '.join(numbers) or '(none)'}", column=column)
    keys = [each for each in info.routing_keys if each != info.window]
    label = pa.array([" / ".join(map(str, each.values())) for each in data.select(keys).to_pylist()] or [], pa.string())
    drawn = pa.table({"key": label, column: data[column].cast(pa.float64())})
    greatest = drawn.group_by("key").aggregate([(column, "sum")]).sort_by([(f"{column}_sum", "descending")])
    if greatest.num_rows > MOST_KEYS:
        data = data.filter(wanted := pc.is_in(label, greatest["key"].slice(0, MOST_KEYS).combine_chunks()))
        drawn = drawn.filter(wanted)
    order = greatest["key"].slice(0, MOST_KEYS).to_pylist()
    if info.window is None:
        bars = altair.Chart(altair.Data(values=drawn.to_pylist())).mark_bar()
        return bars.encode(
            x=f"{column}:Q", y=altair.Y("key:N", sort=order, title=" / ".join(keys)), tooltip=["key:N", f"{column}:Q"]
        )
    starts = [each.isoformat() if each is not None else None for each in data[info.window].to_pylist()]
    values = drawn.append_column(info.window, pa.array(starts, pa.string())).to_pylist()
    return (
        altair.Chart(altair.Data(values=values))
        .mark_line(point=True)
        .encode(
            x=f"{info.window}:T",
            y=f"{column}:Q",
            color=altair.Color("key:N", sort=order, title=" / ".join(keys)),
            tooltip=["key:N", f"{info.window}:T", f"{column}:Q"],
        )
    )


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))
