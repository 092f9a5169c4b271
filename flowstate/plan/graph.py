"""A flow as boxes and arrows: what feeds what, for people. Outputs that hang on one node share its box."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from flowstate.plan.nodes import (
    Changes,
    DeadLetters,
    Final,
    Grouped,
    Late,
    Node,
    Scan,
    Sink,
    Transform,
    View,
    shown_url,
    window_text,
)
from flowstate.plan.window import duration_text

Kind = Literal["source", "step", "view", "rows", "sink"]


@dataclass(frozen=True)
class Box:
    """`name` says what it is, `facts` how it is, a line each; `columns` are those of its rows."""

    number: int
    kind: Kind
    name: str
    facts: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Graph:
    """Every box comes after those that feed it. `arrows` are (from, to), by number."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int], ...]

    def after(self, number: int) -> list[Box]:
        """Those that a box feeds."""
        fed = {to for since, to in self.arrows if since == number}
        return [each for each in self.boxes if each.number in fed]

    @property
    def first(self) -> list[Box]:
        """Those that nothing feeds."""
        fed = {to for _, to in self.arrows}
        return [each for each in self.boxes if each.number not in fed]


def graph(outputs: Iterable[Node]) -> Graph:
    """Of everything that `outputs` need."""
    known: dict[int, Box] = {}
    kept: list[Node] = []  # numbers stand for nodes only while these are there
    arrows: list[tuple[int, int]] = []

    def add(node: Node) -> Box:
        if isinstance(node, Grouped):  # it is told with its view
            return add(node.before)
        if id(node) in known:
            return known[id(node)]
        before = None if node.input is None else add(node.input)
        box = known[id(node)] = _box(len(known) + 1, node)
        kept.append(node)
        if before is not None:
            arrows.append((before.number, box.number))
        return box

    for each in outputs:
        add(each)
    return Graph(tuple(known.values()), tuple(arrows))


def _box(number: int, node: Node) -> Box:
    columns = _columns(node.schema)
    match node:
        case Scan():
            facts = [f"{node.spec.kind}"]
            place = node.spec.options.get("topic") or node.spec.options.get("url")
            if isinstance(place, str):
                facts[0] += f": {shown_url(place)}"
            if node.spec.event_time is not None:
                facts.append(f"event time {node.spec.event_time}, lateness {duration_text(node.spec.lateness)}")
            return Box(number, "source", node.spec.name, tuple(facts), columns)
        case Transform():
            return Box(number, "step", str(node.step), (), columns)
        case View():
            return Box(number, "view", node.name, tuple(_of_group(node.before)), columns)
        case Final():
            return Box(number, "rows", "final rows", ("each once, when its window has closed",), columns)
        case Changes():
            return Box(number, "rows", "changes", ("every saved revision",), columns)
        case Late():
            return Box(number, "rows", "late rows", ("that came after their window had closed",), columns)
        case DeadLetters():
            return Box(number, "rows", "dead letters", ("what could not be read",), columns)
        case Sink():
            return Box(number, "sink", node.kind, (shown_url(node.url),), columns)
    return Box(number, "step", str(node), (), columns)


def _of_group(group: Grouped) -> Iterable[str]:
    keys = [name if str(expr) == name else f"{name} = {expr}" for name, expr in group.keys]
    if keys:
        yield f"key {', '.join(keys)}"
    if group.window is not None:
        yield f"{group.window.name} = {window_text(group.window, group.window_column)}"
    for name, aggregate in group.aggregates:
        yield f"{name} = {aggregate}"


def _columns(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    return tuple((each.name, str(each.type)) for each in schema)
