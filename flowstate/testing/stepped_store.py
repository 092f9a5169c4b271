"""Interleavings by choice: several actors on one store, one store operation at a time, in an order that a seed decides."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from flowstate.errors import Unavailable
from flowstate.store import Bytes, Store

T = TypeVar("T")
Actor = Callable[[Store], None]


def interleave(store: Store, actors: Sequence[Actor], chance: random.Random, *, faults: float = 0.0) -> list[str]:
    """Run every actor, in a thread of its own, with a store whose operations take turns. Some actors are slow, by chance, so that others
    overtake them far. A share `faults` of the operations raises Unavailable, before or after it took effect.

    Returns the order of the operations, for a message; raises what the first actor raised.
    """
    trace: list[str] = []
    turns = [_Turns(store, number, trace, random.Random(chance.random()), faults) for number in range(len(actors))]
    threads = []
    for actor, turn in zip(actors, turns, strict=True):
        thread = threading.Thread(target=turn.run, args=(actor,), daemon=True)
        threads.append(thread)
        thread.start()
        turn.arrived.acquire()
    weights = [chance.choice([1, 1, 5, 25]) for _ in actors]
    while waiting := [number for number, turn in enumerate(turns) if not turn.done]:
        (number,) = chance.choices(waiting, [weights[each] for each in waiting])
        if chance.random() < 0.02:
            weights[number] = chance.choice([1, 1, 5, 25])
        turns[number].go.release()
        turns[number].arrived.acquire()
    for thread in threads:
        thread.join()
    for turn in turns:
        if turn.error is not None:
            raise turn.error
    return trace


class _Turns(Store):
    """The store as one actor sees it."""

    def __init__(self, store: Store, number: int, trace: list[str], chance: random.Random, faults: float) -> None:
        self.store = store
        self.url = store.url
        self.number = number
        self.trace = trace
        self.chance = chance
        self.faults = faults
        self.go = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self.done = False
        self.error: BaseException | None = None

    def run(self, actor: Actor) -> None:
        try:
            actor(self)
        except BaseException as error:
            self.error = error
        self.done = True
        self.arrived.release()

    def _turn(self, what: str, action: Callable[[], T]) -> T:
        self.arrived.release()
        self.go.acquire()
        self.trace.append(f"{self.number}: {what}")
        if self.chance.random() < self.faults:
            if self.chance.random() < 0.5:
                action()
            raise Unavailable("interrupted by a test")
        return action()

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        return self._turn(f"create {path}", lambda: self.store.create(path, data))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._turn(f"read {path}", lambda: self.store.read(path, start, end))

    def list(self, prefix: str = "") -> list[str]:
        return self._turn(f"list {prefix}", lambda: self.store.list(prefix))

    def delete(self, path: str) -> None:
        return self._turn(f"delete {path}", lambda: self.store.delete(path))

    def exists(self, path: str) -> bool:
        return self._turn(f"exists {path}", lambda: self.store.exists(path))
