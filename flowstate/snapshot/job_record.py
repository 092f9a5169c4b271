"""What a job is, from its first start on: one chain, whose newest entry is the present run.

Key groups and the hash's seed are fixed at the first start. Another number of partitions is another *generation*, restored from a saved
cut of the one before: the record names that cut (`origin`) and is written first, so a restart in the middle of a rescale goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flowstate.errors import Fenced, InvalidFlow, Unavailable
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.layout import JOB
from flowstate.store import Store

_ATTEMPTS = 1000


@dataclass(frozen=True)
class JobRecord:
    """`plan` describes the flow in plain data, for people and for reading without a job. `run` counts starts, `created` is Unix time of
    the first. `origin` is the number of the cut that this generation is restored from, where a partition has no state of its own yet."""

    name: str
    plan: Mapping[str, Any]
    fingerprint: str
    partitions: int
    key_groups: int
    seed: int
    generation: int = 1
    run: int = 1
    created: float = 0.0
    origin: int | None = None
    schema: int = field(default=1)


class JobChain:
    """The job's chain in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.chain = Chain(store, JOB)

    def load(self) -> JobRecord | None:
        """The present record; None where no job ever was."""
        latest = self.chain.latest()
        return None if latest is None else _parse(latest[1])

    def claim_run(
        self,
        *,
        name: str,
        plan: Mapping[str, Any],
        fingerprint: str,
        partitions: int,
        key_groups: int,
        seed: int,
        created: float,
        origin: int | None = None,
        after: int | None = None,
    ) -> JobRecord:
        """Begin a run, which fences every run before it. `key_groups`, `seed` and `created` count only at the first start.

        `origin`, the number of a saved cut, begins a new generation; another number of partitions needs one. InvalidFlow, with what
        differs, when the flow is not the one that wrote these snapshots. `after`: the run that must be the newest so far, since what was
        decided rests on it; Fenced when it is not.
        """
        for _ in range(_ATTEMPTS):
            latest = self.chain.latest()
            if latest is None:
                version = 1
                record = JobRecord(name, plan, fingerprint, partitions, key_groups, seed, created=created)
            else:
                version, before = latest[0] + 1, _parse(latest[1])
                _check(before, name, plan, fingerprint)
                if after is not None and before.run != after:
                    raise Fenced("another run of this job has begun meanwhile; try again", run=after, newest=before.run)
                if origin is None and partitions != before.partitions:
                    raise InvalidFlow(
                        "these snapshots have another number of partitions; keep it, or restart from a saved cut to change it",
                        partitions=partitions,
                        saved=before.partitions,
                    )
                record = replace(before, run=before.run + 1)
                if origin is not None:
                    record = replace(record, partitions=partitions, generation=before.generation + 1, origin=origin)
            if self.chain.append(version, asdict(record)):
                return record
        raise Unavailable("too many runs of one job start at once; start one")

    def check(self, run: int) -> None:
        """Fenced when a newer run has begun."""
        newest = self.load()
        if newest is not None and newest.run != run:
            raise Fenced("a newer run of this job has begun", run=run, newest=newest.run)


def _parse(data: Mapping[str, Any]) -> JobRecord:
    if data["schema"] != 1:
        raise InvalidFlow(
            "these snapshots were written by another version of flowstate; use that one", schema=data["schema"]
        )
    return JobRecord(**data)


def _check(before: JobRecord, name: str, plan: Mapping[str, Any], fingerprint: str) -> None:
    if before.name != name:
        raise InvalidFlow(
            "these snapshots belong to another job; give this one a folder of its own", job=name, saved=before.name
        )
    if before.fingerprint != fingerprint:
        changes = difference(before.plan, plan) or ["in a part that its description does not show"]
        raise InvalidFlow(
            "the flow is not the one that wrote these snapshots; undo the change, or give the new flow a folder of its own:\n  "
            + "\n  ".join(changes[:20])
            + (f"\n  and {len(changes) - 20} more" if len(changes) > 20 else ""),
            job=name,
        )


def difference(before: Any, after: Any, path: str = "flow") -> list[str]:
    """What differs between two pieces of plain data, one line each: ``flow.views.totals.keys: 'a' -> 'b'``."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for name in [*before, *(each for each in after if each not in before)]:
            where = f"{path}.{name}"
            if name not in after:
                found.append(f"{where}: removed (was {before[name]!r})")
            elif name not in before:
                found.append(f"{where}: added ({after[name]!r})")
            else:
                found += difference(before[name], after[name], where)
        return found
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if len(before) == len(after):
            pairs = enumerate(zip(before, after, strict=True))
            return [line for index, (old, new) in pairs for line in difference(old, new, f"{path}[{index}]")]
        return [f"{path}: {list(before)!r} -> {list(after)!r}"]
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]
