"""A job as it is given to the cluster: frozen, pickled once by the driver for the scheduler and the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowstate.plan.spec import JobPlan


@dataclass(frozen=True)
class JobSpec:
    """`every`, `idle_after` and `discover` are seconds. `keep` is how many snapshots of each partition stay. `generation` and `seed` are
    decided when the run is claimed. `spill` is how many bytes of output may wait for sinks that are away, over all partitions, before the
    sources pause. `takeover`: whether this run may replace one that is alive."""

    name: str
    plan: JobPlan
    snapshots: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets
    partitions: int = 2
    every: float = 10.0
    keep: int = 10
    key_groups: int = 128
    idle_after: float = 30.0
    discover: float = 5.0
    block_rows: int = 16_384
    spill: int = 10 << 30
    takeover: bool = False
    generation: int = 1
    seed: int = 0
    run: int = 0
    origin: int | None = None  # saved cut that this generation begins with

    def served_epoch(self, epoch: int) -> int:
        """By which readers know an incarnation. The epochs of a job that is divided anew begin again, on the same workers, and an address
        from before must not be taken for one of now: its partition has other keys."""
        return (self.generation - 1) << 32 | epoch
