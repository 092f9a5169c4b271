"""One history, and many."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

from flowstate.testing.adversity.fault import Fault
from flowstate.testing.adversity.world import World

_PIECE = 25  # seeds that a process takes at a time


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


def explore(seeds: Iterable[int], *, processes: int = 1, **settings: Any) -> Counter[str]:
    """Many histories, on so many processes at once. The first `Fault` ends it."""
    return sum(in_pieces(partial(_explore, settings=settings), seeds, processes), Counter[str]())


def in_pieces(
    work: Callable[[list[int]], Counter[str]], seeds: Iterable[int], processes: int
) -> Iterator[Counter[str]]:
    """What `work` gives for each piece of `seeds`, as it comes."""
    left = list(seeds)
    pieces = [left[at : at + _PIECE] for at in range(0, len(left), _PIECE)]
    if processes <= 1:
        yield from map(work, pieces)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(work, piece) for piece in pieces]
        try:
            for each in as_completed(running):
                yield each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _explore(seeds: list[int], settings: dict[str, Any]) -> Counter[str]:
    counts = Counter[str]()
    for seed in seeds:
        counts += simulate(seed, **settings)
    return counts
