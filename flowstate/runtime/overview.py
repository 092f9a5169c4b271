"""A job in plain data, as `job.status()` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowstate.runtime.running import RunningJob


def overview(job: RunningJob) -> dict[str, Any]:
    """Msgpack-able. `paused` says why nothing is read just now, or is None; `problems` is what troubles the job as a whole, by topic."""
    coordinator, table = job.coordinator, job.coordinator.table
    given_up = {
        f"partition {number}": f"given up after it failed again and again; mend the cause, stop the job and start it: {reason}"
        for number, reason in coordinator.given_up.items()
    }
    return {
        "name": job.spec.name,
        "state": job.state,
        "ready": job.ready,
        "run": job.spec.run,
        "generation": job.spec.generation,
        "snapshots": job.spec.snapshots,
        "problems": job.problems | given_up,
        "paused": _paused(job) if table.paused else None,
        "saved_cut": dict(job.saved_cut),
        "idle_after": job.spec.idle_after,
        "workers": dict(coordinator.workers),
        "figures": dict(job.figures),
        "partitions": {
            str(number): {
                "state": member.state,
                "epoch": member.epoch,
                "worker": member.worker,
                "reason": member.reason,
            }
            | {"report": member.report}
            for number, member in coordinator.members.items()
        },
        "splits": {
            split: {
                "label": entry.label,
                "end": entry.end,
                "reader": table.readers[split].partition if split in table.readers else None,
            }
            for split, entry in table.splits.items()
        },
    }


def replaced(name: str, run: int, reason: str) -> dict[str, Any]:
    """What is left to say of a run that another has replaced on this cluster."""
    return {
        "name": name,
        "state": "fenced",
        "ready": False,
        "run": run,
        "problems": {"job": reason},
        "paused": None,
        "partitions": {},
        "splits": {},
    }


def _paused(job: RunningJob) -> str:
    return (
        f"output waits for sinks beyond the quota, so nothing is read until they take it: spilled={job.coordinator.spilled} "
        f"spill={job.spec.spill}"
    )
