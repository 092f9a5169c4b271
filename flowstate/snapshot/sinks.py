"""What a job's snapshots tell of its sinks while nobody runs it."""

from __future__ import annotations

from typing import Any

from flowstate.errors import CorruptData
from flowstate.snapshot.job_record import JobChain
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store


def saved_sinks(store: Store, wall: float) -> dict[int, list[dict[str, Any]]]:
    """By partition, each sink as of what the partition saved last: kind, mode and table, outputs that were not known to have left by then
    (`waiting`, their `bytes`, and the seconds of the `oldest` at `wall`, Unix time), and `open` files. Where it writes, what was rejected
    and what was wrong is not saved: these are None. Empty where no job has saved anything. Raises what reading raises."""
    record = JobChain(store).load()
    identities = [] if record is None else record.plan.get("flow", {}).get("sinks", [])
    if record is None or not identities:
        return {}
    found = {}
    for partition in range(record.partitions):
        saved = PartitionChain(store, record.generation, partition).saved()
        manifest = next((each for each in saved if not isinstance(each, CorruptData)), None)
        if manifest is not None:
            found[partition] = [_told(manifest, number, each, wall) for number, each in enumerate(identities)]
    return found


def _told(manifest: Manifest, number: int, identity: list[str], wall: float) -> dict[str, Any]:
    kind, table, mode = identity[:3]
    staged = [each for each in manifest.staged if each.sink == number]
    waiting = [each for each in staged if not each.open]
    return {
        "kind": kind,
        "mode": mode,
        "table": table,
        "url": None,
        "waiting": len(waiting),
        "bytes": sum(each.bytes for each in waiting),
        "oldest": max((max(0.0, wall - each.since) for each in waiting), default=0.0),
        "open": len(staged) - len(waiting),
        "rejected": None,
        "problem": None,
        "origin": "saved",
        "as_of": None if manifest.state is None else manifest.state.as_of,
    }
