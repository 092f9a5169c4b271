"""The contract of a sink: output in two steps, tied to the manifest of the partition that makes it.

1. `prepare` stages rows as objects in the snapshot store, under names with partition, epoch and number. Nobody outside sees them.
   Names of two incarnations never meet, since their epochs differ; a zombie stages under its own and is then refused its manifest.
2. The partition commits a manifest that names what was staged. **This decides**: what no manifest ever named is never published.
3. `publish` makes one staged output visible. It is idempotent by name and may be done by anybody who has seen the manifest: the
   incarnation, the one that recovers, the supervisor, a zombie; several at once, in any order, again after a crash in the middle.
   Output is visible whole or not at all.
4. The next manifest drops the name, once publishing is known to have succeeded; retention then deletes the staged object.

Every method may be called from any thread. Errors: `Unavailable` when the sink is down (try again; nothing is lost, it is staged),
`InvalidFlow` when the target or the flow must change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyarrow as pa

from flowstate.plan.output import StagedOutput
from flowstate.store import Store


class Sink(ABC):
    """Made from a `SinkSpec`; picklable; touches nothing until it is asked."""

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Refuse at the start what would fail later: rows of `schema` that cannot be written, a target that is not writable."""

    @abstractmethod
    def prepare(
        self, store: Store, prefix: str, partition: int, epoch: int, number: int, rows: pa.Table
    ) -> Sequence[StagedOutput]:
        """Stage `rows` (none: nothing) below the folder `prefix` of the partition. `number` is that of the save. Repeated, also with
        other rows, it stages under other names; the manifest picks."""

    @abstractmethod
    def publish(self, store: Store, staged: StagedOutput) -> None:
        """Make one staged output, which a manifest has named, visible under `staged.target`. CorruptData when the staged object is
        damaged, or gone without the target being there."""
