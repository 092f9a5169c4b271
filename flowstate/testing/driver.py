"""Simulation of a whole job on the real machines: `Partition`s with real contents, the real `Coordinator`, real chains and records.

Only threads, sockets, sources and time are simulated. One seed replays everything; the checks compare with a reference that knows
only the log and the recorded floors. The rules and invariants are those of docs/protocol.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from flowstate.testing.incarnation import Fault
from flowstate.testing.world import World

__all__ = ["Fault", "explore", "simulate"]


def simulate(seed: int, **settings: Any) -> Counter[str]:
    """One history, to its end. How often what happened; `Fault` names the seed and the step when an invariant does not hold.

    `settings` replace what chance has chosen for the world: ``crashes_left=0``, ``moves_left=40``, ``patience=Patience(idle=10.0)``.
    """
    world = World(seed)
    for name, value in settings.items():
        if not hasattr(world, name):
            raise TypeError(f"the world has no setting {name!r}")
        setattr(world, name, value)
    try:
        return world.run()
    except Exception as error:
        raise Fault(f"seed={seed} step={world.now:.0f}: {type(error).__name__}: {error}") from error


def explore(seeds: Iterable[int], **settings: Any) -> Counter[str]:
    """Many histories."""
    counts = Counter[str]()
    for seed in seeds:
        counts += simulate(seed, **settings)
    return counts
