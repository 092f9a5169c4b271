"""Rows on their way from the state to a sink, until a manifest names them: the contract of every kind of output (`outputs` has them)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from flowstate.errors import InternalError
from flowstate.plan.spec import SinkSpec
from flowstate.state.append import AppendView
from flowstate.state.view import TableView

View = TableView | AppendView
Batches = list[pa.RecordBatch]


class Size(NamedTuple):
    """Of output in memory."""

    bytes: int = 0
    rows: int = 0

    def __add__(self, other: object) -> Size:
        assert isinstance(other, Size)
        return Size(self.bytes + other.bytes, self.rows + other.rows)


def size_of(batches: Iterable[pa.RecordBatch]) -> Size:
    return sum((Size(each.nbytes, each.num_rows) for each in batches), Size())


class FrozenState(Protocol):
    """What a save writes: immutable views, and how far windows have closed in them (microseconds)."""

    @property
    def views(self) -> Mapping[str, View]: ...

    @property
    def closed(self) -> int: ...


class Due(ABC):
    """What one save hands over to one sink.

    `left` are rows that are in no table any more: a save that cannot stage them must fail, or they would be lost. All others can be made
    again from the state that is saved. `handed` is what the manifest says of the sink (`Manifest.handed`; None: nothing) when everything
    was staged, `handed_left` when only `left` was.
    """

    left: Batches
    handed: Any
    handed_left: Any

    @abstractmethod
    def rows(self, frozen: FrozenState) -> Batches:
        """All rows, those of `left` first. InvalidFlow if a result does not fit its type. Any thread, while `frozen` is held."""

    @cached_property
    def left_size(self) -> Size:
        return size_of(self.left)


class Output(ABC):
    """Rows of `sink.table` for sink `number`.

    A save *takes* what is due at the moment of its frozen state. Until it is *settled* nothing else is taken. Settled as saved: a
    manifest names everything that was due. As stalled: the manifest names what was in no table any more (`Due.left`), the rest could not
    be made into rows and stays due. As failed: no manifest names anything of it, and all of it is due again.

    Meanwhile the state goes on. Windows that are forgotten are shown to `leaving` before they go, and what is still due of them is kept in
    memory, whichever way the save that is under way will end. What `leaving` cannot make into rows must not be forgotten.

    What a manifest says (`Due.handed`) is enough to go on from the state that it names, and also from an older one, when that is
    damaged (protocol K4): nothing comes twice, nothing is lost.
    """

    def __init__(self, number: int, sink: SinkSpec) -> None:
        self.number, self.sink = number, sink
        self.under_way: Due | None = None

    @property
    def size(self) -> Size:
        """What is in memory alone: named by no manifest, and in no table. Any thread."""
        due = self.under_way
        return self._left_size() + (Size() if due is None else due.left_size)

    @abstractmethod
    def _left_size(self) -> Size: ...

    @abstractmethod
    def restore(self, handed: Any, view: View) -> None:
        """Go on from what the newest manifest says of this sink (None: nothing), with a restored table. When the number of partitions has
        changed, once for each partition of the saved cut, `view` being of what is restored so far."""

    def append(self, split: str, rows: pa.RecordBatch) -> None:
        """Rows of an append table, in the order of their offsets."""
        raise InternalError("this output takes no rows as they come", sink=self.number)

    def leaving(self, view: TableView, ends: Sequence[int]) -> Any:
        """What is due of the windows with these ends (microseconds), which are about to be forgotten; for `keep`, once they are. Errors
        as `Due.rows`."""
        raise InternalError("this output is not of windows", sink=self.number)

    def keep(self, leaving: Any) -> None:
        """The windows are gone."""
        raise InternalError("this output is not of windows", sink=self.number)

    def take(self, frozen: FrozenState) -> Due:
        if self.under_way is not None:
            raise InternalError("output was taken twice", sink=self.number)
        self.under_way = self._take(frozen)
        return self.under_way

    def saved(self, frozen: FrozenState) -> None:
        self._saved(self._settled(), frozen)

    def stalled(self) -> None:
        self._stalled(self._settled())

    def failed(self) -> None:
        self._failed(self._settled())

    def _settled(self) -> Any:
        due, self.under_way = self.under_way, None
        if due is None:
            raise InternalError("output was settled that nobody took", sink=self.number)
        return due

    @abstractmethod
    def _take(self, frozen: FrozenState) -> Due: ...

    @abstractmethod
    def _saved(self, due: Any, frozen: FrozenState) -> None: ...

    @abstractmethod
    def _stalled(self, due: Any) -> None: ...

    @abstractmethod
    def _failed(self, due: Any) -> None: ...
