"""``flowstate explain module:flow``: what a flow is, as its plan knows it. Nothing is connected, read or started."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flowstate.command.rows import printable, write
from flowstate.command.target import load_outputs
from flowstate.plan import drawing
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.graph import graph
from flowstate.plan.spec import JobPlan, TableSpec


def explain(target: str, kind: str, settings: Sequence[str] = ()) -> None:
    """`kind`: text, mermaid, svg or json. Raises InvalidFlow."""
    outputs, _ = load_outputs(target, settings)
    plan = compile_plan([each.node for each in outputs])  # what does not fit together is told by it
    drawn = graph(each.node for each in outputs)
    match kind:
        case "mermaid":
            said = drawing.mermaid(drawn)
        case "svg":
            said = drawing.svg(drawn)
        case "json":
            said = _json(plan)
        case _:
            said = drawing.text(drawn) + "\n" + _tables(plan)
    write(said.encode(errors="replace"))


def _tables(plan: JobPlan) -> str:
    """The views that can be asked, with their columns."""
    lines = []
    for name, table in plan.views.items():
        keys = table.key_schema.names if isinstance(table, TableSpec) else []
        about = "" if keys else "  (rows as they came)"
        lines.append(f"view {name}{about}")
        names = [printable(each.name) for each in table.schema]
        wide = max(map(len, names))
        for shown, each in zip(names, table.schema, strict=True):
            role = "  key" if each.name in keys else ""
            lines.append(f"  {shown:{wide}}  {each.type}{role}")
    return "\n".join([*lines, f"\njob {plan.name!r}, plan {plan.fingerprint[:12]}"]) + "\n"


def _json(plan: JobPlan) -> str:
    views = {
        name: {
            "columns": {each.name: str(each.type) for each in table.schema},
            "keys": table.key_schema.names if isinstance(table, TableSpec) else [],
            "routing_keys": list(table.routing_keys) if isinstance(table, TableSpec) else [],
        }
        for name, table in plan.views.items()
    }
    told = {"job": plan.name, "fingerprint": plan.fingerprint, "plan": plan.describe(), "views": views}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")) + "\n"
