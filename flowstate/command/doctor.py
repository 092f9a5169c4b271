"""``flowstate doctor``: what keeps a job from running, or will, and what to do about it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from flowstate.api import arguments
from flowstate.command import checks
from flowstate.command.checks import Check, Found
from flowstate.command.place import Place
from flowstate.command.rows import printable, write
from flowstate.errors import InvalidFlow
from flowstate.plan.spec import JobPlan

_MARKS = {"ok": "ok   ", "doubt": "doubt", "wrong": "wrong"}


def doctor(
    flow: str | None,
    settings: Sequence[str],
    place: Place | None,
    snapshots: str | None,
    bootstrap: str | None,
    topics: Sequence[str],
    kind: str,
) -> int:
    """0, or 1 if something is wrong. A line for each check, as it is found; with `kind` json an object a line."""
    logging.getLogger("flowstate").setLevel(logging.CRITICAL)  # what it would tell of is told here
    bad = False
    with ThreadPoolExecutor(8) as pool:  # one that waits for a broker keeps no other one waiting
        plan: JobPlan | None = None
        if flow is not None:
            found, plan = _flow(flow, settings)
            bad |= _tell(found, kind)
        for found in pool.map(checks.run, _checks(plan, place, snapshots, bootstrap, topics)):
            bad |= _tell(found, kind)
    return int(bad)


def _flow(target: str, settings: Sequence[str]) -> tuple[Found, JobPlan | None]:
    """Whether there is such a flow, and its parts fit together."""
    from flowstate.command.target import load_outputs
    from flowstate.plan.compile import compile as compile_plan

    plans: list[JobPlan] = []

    def load() -> str:
        outputs, _ = load_outputs(target, settings)
        plans.append(compile_plan([each.node for each in outputs]))
        return f"{target} fits together: views {', '.join(plans[0].views)}"

    found = checks.run(("flow", load))
    return found, plans[0] if plans else None


def _checks(
    plan: JobPlan | None, place: Place | None, snapshots: str | None, bootstrap: str | None, topics: Sequence[str]
) -> Iterator[Check]:
    yield "packages", checks.packages
    yield "memory", checks.memory
    yield "files", checks.files
    yield "kernels", checks.kernels
    yield "ports", checks.ports
    yield "clock", checks.clock
    if snapshots is not None:
        yield "snapshots", partial(checks.snapshots, arguments.place("snapshots", snapshots), plan)
    if plan is not None:
        for scan in plan.sources:
            yield "source", partial(checks.source, scan)
        for sink in plan.sinks:
            yield "sink", partial(checks.sink, sink, plan.tables[sink.table])
    if bootstrap is not None:
        yield "broker", partial(checks.broker, bootstrap, topics)
    elif topics:
        raise InvalidFlow("say which broker has the topic: --bootstrap host:9092")
    if place is not None:
        yield "job", partial(checks.job, place)


def _tell(found: Found, kind: str) -> bool:
    """Whether it is wrong."""
    if kind == "json":
        told = {"check": found.check, "state": found.state, "found": found.words}
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    else:
        words = " ".join(printable(each) for each in found.words.split())
        text = f"{_MARKS[found.state]}  {found.check:10} {words}"
    write(text.encode(errors="replace") + b"\n")
    return found.state == "wrong"
