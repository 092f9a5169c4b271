"""Simulation of a whole job on the real machines: `Partition`s with real contents, the real `Coordinator`, real chains and records.

Only threads, sockets, sources and time are simulated. One seed replays everything; the checks compare with a reference that knows
only the log and the recorded floors. The rules and invariants are those of docs/protocol.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flowstate.testing.incarnation import Fault
from flowstate.testing.world import World

__all__ = ["Fault", "explore", "simulate"]


def simulate(seed: int) -> Counter[str]:
    """One history, to its end. How often what happened; `Fault` names the seed and the step when an invariant does not hold."""
    world = World(seed)
    try:
        return world.run()
    except Exception as error:
        raise Fault(f"seed={seed} step={world.now:.0f}: {type(error).__name__}: {error}") from error


def explore(seeds: Iterable[int]) -> Counter[str]:
    """Many histories."""
    counts = Counter[str]()
    for seed in seeds:
        counts += simulate(seed)
    return counts
