"""A partition that does nothing but hand rows to a sink, on a real chain of manifests, and that may die or fail at any step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from flowstate.errors import Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.sink.base import Sink, Stage
from flowstate.snapshot.layout import partition as partition_folder
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Bytes, Store

T = TypeVar("T")
Step = Callable[[str], None]
GENERATION = 1


class Death(BaseException):
    """The process is gone: nothing may catch this."""


class Steps:
    """Counts the steps of a process. At step `at` (from 0) it dies, and at every later one; or, with `fails`, that step alone raises
    Unavailable. `names` are the steps so far."""

    def __init__(self, at: int | None = None, *, fails: bool = False) -> None:
        self.at = at
        self.fails = fails
        self.names: list[str] = []

    def __call__(self, name: str) -> None:
        number = len(self.names)
        self.names.append(name)
        if self.at is None or number < self.at or (self.fails and number > self.at):
            return
        if self.fails:
            raise Unavailable("interrupted by a test", step=name)
        raise Death(f"{number}: {name}")


class SteppingStore(Store):
    """A store that says what it is about to do, and what it has done: between the two the answer may be lost."""

    def __init__(self, store: Store, step: Step) -> None:
        self.store = store
        self.url = store.url
        self.step = step

    def _do(self, what: str, action: Callable[[], T]) -> T:
        self.step(f"before {what}")
        answer = action()
        self.step(f"after {what}")
        return answer

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        return self._do(f"create {path}", lambda: self.store.create(path, data))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.step(f"read {path}")
        return self.store.read(path, start, end)

    def list(self, prefix: str = "") -> list[str]:
        return self.store.list(prefix)

    def delete(self, path: str) -> None:
        self._do(f"delete {path}", lambda: self.store.delete(path))

    def exists(self, path: str) -> bool:
        self.step(f"exists {path}")
        return self.store.exists(path)


@dataclass
class SinkIncarnation:
    """One incarnation of a partition. `rows` gives the rows of save `done` (from 0) of `saves`, for the incarnation's epoch. `named` are
    the outputs that manifests of this incarnation let it publish, in order."""

    sink: Sink
    store: Store
    step: Step
    rows: Callable[[int, int], pa.Table]
    saves: int
    partition: int = 0
    named: list[StagedOutput] = field(default_factory=list)

    def run(self) -> bool:
        """Go on where the newest manifest says, until every row is handed over and published. False: a newer incarnation has taken over.
        A failure that may pass is met by doing the same again."""
        chain = PartitionChain(self.store, GENERATION, self.partition)
        manifest = _until_available(chain.claim)
        number = 0
        while True:
            for each in manifest.staged:
                if not each.open:
                    self.named.append(each)
                    self._publish(each)
            done = int(manifest.handed.get("0", 0))
            if done == self.saves and not manifest.staged:
                return True
            number += 1
            self._point("before prepare")
            staged = self._prepare(manifest, done, number)
            self._point("before manifest")
            handed = {"0": min(done + 1, self.saves)}
            wanted = Manifest(0, manifest.epoch, None, tuple(staged), handed)
            before = manifest.version
            committed = _until_available(lambda: chain.commit(before, wanted))  # noqa: B023
            if committed is None:
                return False
            self._point("after manifest")
            manifest = committed

    def _point(self, name: str) -> None:
        """A place to die between two things that can fail."""
        with contextlib.suppress(Unavailable):
            self.step(name)

    def _publish(self, staged: StagedOutput) -> None:
        _until_available(lambda: self.sink.publish(self.store, staged))
        self._point("published")

    def _prepare(self, manifest: Manifest, done: int, number: int) -> Sequence[StagedOutput]:
        rows = self.rows(done, manifest.epoch) if done < self.saves else None
        stage = Stage(
            self.store,
            partition_folder(GENERATION, self.partition),
            self.partition,
            manifest.epoch,
            number,
            now=float(done),
            last=done + 1 >= self.saves,
        )
        open = [each for each in manifest.staged if each.open]
        return _until_available(lambda: self.sink.prepare(stage, rows, open))


def _until_available(action: Callable[[], T]) -> T:
    for _ in range(4):
        try:
            return action()
        except Unavailable:
            continue
    return action()
