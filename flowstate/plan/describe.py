"""What a plan means, as plain JSON: for the fingerprint of snapshots, and to say in words what differs from a saved one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from flowstate.plan.spec import JobPlan, ScanSpec, SinkSpec, TableSpec
    from flowstate.plan.window import WindowSpec

# Options of a source that decide what a row is. Where the log stands and how to log in may change under a job.
_MEANING = ("topic", "format", "splits", "identity", "header", "delimiter", "decimal_point", "time_format", "encoding")


def describe(plan: JobPlan) -> dict[str, Any]:
    """See `JobPlan.describe`."""
    from flowstate.plan.spec import AppendSpec

    views: dict[str, Any] = {}
    streams: dict[str, Any] = {}
    for route in plan.routes:
        table = plan.tables[route.table]
        if isinstance(table, AppendSpec):
            streams[route.table] = {
                "source": plan.sources[route.source].name,
                "steps": [str(step) for step in route.steps],
                "columns": _columns(route.schema),
            }
            continue
        views[route.table] = {
            "source": plan.sources[route.source].name,
            "steps": [str(step) for step in route.steps],
            "keys": [[name, str(expr)] for name, expr in route.keys],
            "key types": [[each.name, str(each.type)] for each in table.keys],
            "window": None if route.window is None else _window(route.window, route.window_column),
            "aggregates": _aggregates(table, {name: str(expr) for name, expr in route.inputs}),
            "aggregate types": [[each.name, str(each.result_type)] for each in table.visible],
        }
        if table.counts_revisions:
            views[route.table]["revisions"] = "counted"
    # Only what there is: a flow without output outside means what it meant before there was any.
    output = {"streams": streams, "sinks": _identities(plan.sinks)}
    return {
        "version": 1,
        "sources": {source.name: _source(source) for source in plan.sources},
        "views": views,
        "append": sorted(name for name, table in plan.tables.items() if isinstance(table, AppendSpec)),
        **{name: each for name, each in output.items() if each},
    }


def _source(source: ScanSpec) -> dict[str, Any]:
    options = {name: source.options[name] for name in _MEANING if source.options.get(name) is not None}
    return {
        "kind": source.kind,
        "columns": _columns(source.schema),
        "event time": source.event_time,
        "lateness": _time(source.lateness),
        "max ahead": _time(source.max_ahead),
        **options,
    }


def _columns(schema: pa.Schema) -> dict[str, str]:
    return {each.name: str(each.type) + ("" if each.nullable else " not null") for each in schema}


def _time(micros: int | None) -> str | None:
    return None if micros is None else f"{micros}us"


def _window(window: WindowSpec, column: str | None) -> dict[str, Any]:
    return {
        "name": window.name,
        "column": column,
        "type": str(window.time_type),
        "every": str(window.every),
        "offset": str(window.offset),
        "grace": _time(window.grace),
        "keep": _time(window.keep),
    }


def _aggregates(table: TableSpec, inputs: Mapping[str, str]) -> list[list[str]]:
    written = []
    for each in table.visible:
        options = [f"{name}={value!r}" for name, value in sorted(each.options.items())]
        arguments = ", ".join([*([] if each.input is None else [inputs[each.input]]), *options])
        written.append([each.name, f"{each.function}({arguments})"])
    return written


def fingerprint(description: Mapping[str, Any]) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on how `now` differs from `before`, in a stable order."""
    before = json.loads(json.dumps(before))
    found: list[str] = []
    if before.get("version") != now["version"]:
        found.append(f"the plan's format was {before.get('version')}, is {now['version']}")
    for kind, one in (("sources", "source"), ("views", "view")):
        _members(one, before.get(kind, {}), now[kind], found)
    streams = {*before.get("streams", {}), *now.get("streams", {})}
    old, new = ([name for name in each.get("append", []) if name not in streams] for each in (before, now))
    found += [f"table {name!r} is new" for name in new if name not in old]
    found += [f"table {name!r} is gone" for name in old if name not in new]
    _members("stream", before.get("streams", {}), now.get("streams", {}), found)
    found += _sinks(before.get("sinks", []), now.get("sinks", []))
    return found


def _identities(sinks: Sequence[SinkSpec]) -> list[list[str]]:
    """Where a sink writes may change, unless only that tells it from another."""
    from flowstate.plan.places import place_of

    found = []
    for each in sinks:
        twins = [other for other in sinks if other.identity == each.identity]
        place = hashlib.sha256(json.dumps(place_of(each)).encode()).hexdigest()[:8] if len(twins) > 1 else None
        found.append([*each.identity, *([] if place is None else [place])])
    return found


def _sinks(before: list[list[str]], now: list[list[str]]) -> list[str]:
    """Sinks are known by their order: what each has been handed is saved under its number."""
    found = [
        f"sink {number} was {_sink(old)}, is {_sink(new)}"
        for number, (old, new) in enumerate(zip(before, now, strict=False), 1)
        if list(old) != list(new)
    ]
    found += [f"sink {len(before) + number} is new: {_sink(new)}" for number, new in enumerate(now[len(before) :], 1)]
    found += [f"sink {len(now) + number} is gone: {_sink(old)}" for number, old in enumerate(before[len(now) :], 1)]
    return found


def _sink(identity: list[str]) -> str:
    kind, table, mode, *place = identity
    rows = {"final": "final rows", "changes": "changes", "append": "rows"}.get(mode, mode)
    return f"{kind} of {rows} of {table!r}" + "".join(f" to place {each}" for each in place)


def _members(kind: str, before: Mapping[str, Any], now: Mapping[str, Any], found: list[str], inside: str = "") -> None:
    for name in sorted({*before, *now}):
        label = f"{inside}{kind} {name!r}"
        if name not in before:
            found.append(f"{label} is new")
        elif name not in now:
            found.append(f"{label} is gone")
        elif isinstance(now[name], Mapping) and isinstance(before[name], Mapping):
            _facts(label, before[name], now[name], found)
        elif before[name] != now[name]:
            found.append(f"{label} was {before[name]}, is {now[name]}")


# Facts that are ordered pairs of a name and a text, and what one of them is called.
_ORDERED = {
    "keys": "key",
    "key types": "type of key",
    "aggregates": "aggregate",
    "aggregate types": "type of aggregate",
}


def _facts(label: str, before: Mapping[str, Any], now: Mapping[str, Any], found: list[str]) -> None:
    for fact in sorted({*before, *now}):
        old, new = before.get(fact), now.get(fact)
        if old == new:
            continue
        if fact == "revisions":
            found.append(
                f"{label}: revisions were {old or 'not counted'}, are {new or 'not counted'} (for a sink of changes)"
            )
        elif fact in _ORDERED:
            count = len(found)
            _members(_ORDERED[fact], dict(old or []), dict(new or []), found, f"{label}: ")
            if len(found) == count:
                found.append(f"{label}: order of {fact} was {_names(old)}, is {_names(new)}")
        elif fact == "columns":
            _members("column", old or {}, new or {}, found, f"{label}: ")
        elif fact == "steps":
            found.append(f"{label}: steps were {_listed(old)}, are {_listed(new)}")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            _facts(f"{label}: {fact}", old, new, found)
        else:
            found.append(f"{label}: {fact} was {_said(old)}, is {_said(new)}")


def _names(pairs: Any) -> str:
    return ", ".join(name for name, _ in pairs)


def _listed(steps: Any) -> str:
    return " then ".join(steps) if steps else "none"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items() if each is not None)
    return "none" if value is None else str(value)
