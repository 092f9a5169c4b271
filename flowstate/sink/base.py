"""The contract of a sink: output in two steps, tied to the manifest of the partition that makes it.

1. `prepare` stages rows as objects in the snapshot store, under names with partition, epoch and number. Nobody outside sees them.
   Names of two incarnations never meet, since their epochs differ; a zombie stages under its own and is then refused its manifest.
2. The partition commits a manifest that names what was staged. **This decides**: what no manifest ever named is never published.
3. `publish` makes one staged output visible. It is idempotent by name and may be done by anybody who has seen the manifest: the
   incarnation, the one that recovers, the supervisor, a zombie; several at once, again after a crash in the middle. One incarnation
   publishes the outputs of a sink one after the other, in the order in which its manifests name them.
4. The next manifest drops the name, once publishing is known to have succeeded; retention then deletes the staged object.

What is staged may stay *open* (`StagedOutput.open`): a file that is not full yet. The manifest names it like any other, so nothing of it
is lost; the next `prepare` is given everything that is open and says what takes its place. Only `publish` shows anything to anybody.

Every method may be called from any thread. Errors: `Unavailable` when the sink is down (try again; nothing is lost, it is staged),
`InvalidFlow` when the target or the flow must change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from flowstate.plan.output import StagedOutput
from flowstate.store import Store


@dataclass(frozen=True)
class Stage:
    """Where a save may stage, and under which names: in `store` below the folder `prefix` of `partition`, by the incarnation `epoch`, as
    save `number`. `now` is Unix time. `last`: the input has ended, so nothing may stay open."""

    store: Store
    prefix: str
    partition: int
    epoch: int
    number: int
    now: float = 0.0
    last: bool = False


class Sink(ABC):
    """Made from a `SinkSpec` by `flowstate.sink.make_sink`; picklable; touches nothing until it is asked."""

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Refuse at the start what would fail later: rows of `schema` that cannot be written, a target that is not writable."""

    @abstractmethod
    def prepare(self, stage: Stage, rows: pa.Table | None, open: Sequence[StagedOutput] = ()) -> Sequence[StagedOutput]:
        """Stage `rows` (None, or none: nothing new). Returns what the manifest names instead of `open`: outputs that may be published,
        and those that are open now. Repeated, also with other rows, it stages under other names; the manifest picks."""

    def due(self, open: Sequence[StagedOutput], now: float) -> bool:
        """Whether `prepare` should be called for the sake of `open` alone, though there are no new rows. `now` is Unix time."""
        return False

    @abstractmethod
    def publish(self, store: Store, staged: StagedOutput) -> int:
        """Make one staged output, which a manifest has named, visible under `staged.target`. Returns how many of its rows the other side
        refused for good; those are kept as dead letters beside the stage (`rejected.reject`). CorruptData when the staged object is
        damaged, or gone without the target being there."""

    def close(self) -> None:
        """Let go of connections. The sink may be used again."""
        return None
