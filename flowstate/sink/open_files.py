"""Files that are not full yet: what is open, what is due, and where a folder's rows are cut into files.

The rows of a folder wait as *parts*: objects in the stage, Arrow IPC streams, one for each save that brought rows for it. Which folder (and
which columns) a part belongs to is told by its name, ``e000005-000012-0-3.open_<digest>``, so that nothing is read before it is due; the
folder itself stands in the schema's metadata. A save stages only its new rows. But manifests name every part, so once a folder has
`MOST_PARTS` of them, those of the newest saves become one: a row is staged again about once in so many saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import pyarrow as pa

from flowstate.errors import CorruptData, InternalError, InvalidFlow
from flowstate.plan.output import StagedOutput
from flowstate.sink.staging import from_ipc, read_staged, to_ipc
from flowstate.store import Store

MOST_PARTS = 64
#: Of a file that is closed by its age alone: nobody should need the memory for more.
MOST_BYTES = 256 << 20
_FOLDER = b"flowstate.folder"
_OPEN = "open_"


@dataclass(frozen=True)
class Rolling:
    """When a file is finished: once its rows are `bytes` (as Arrow IPC, before the format compresses them), or its oldest row was staged
    `seconds` ago (None: however old). Without either (`now`), every save finishes its files."""

    bytes: int
    seconds: float | None
    now: bool

    @staticmethod
    def of(roll_bytes: int | None, roll_after: int | None) -> Rolling:
        """`roll_after` is in microseconds."""
        for name, value in (("roll_bytes", roll_bytes), ("roll_after", roll_after)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
                raise InvalidFlow(f"{name} is a whole number above 0", given=value)
        seconds = None if roll_after is None else roll_after / 1e6
        return Rolling(roll_bytes or MOST_BYTES, seconds, roll_bytes is None and roll_after is None)

    def due(self, open: Iterable[StagedOutput], now: float) -> bool:
        """Whether a file of these parts is to be finished, though no new rows came."""
        return any(self.now or (self.seconds is not None and each.since + self.seconds <= now) for each in open)


@dataclass(frozen=True)
class Cut:
    """How many rows each finished file gets, in order, and how many stay open behind them."""

    files: tuple[int, ...]
    rest: int


def cut(rows: int, size: int, most: int, finish: bool) -> Cut:
    """Cut `rows` rows of `size` bytes into files of about `most` bytes; with `finish`, nothing stays open."""
    if size < most or rows == 0:
        return Cut((rows,), 0) if finish and rows else Cut((), rows)
    each = max(1, rows * most // size)
    files = [each] * (rows // each)
    rest = rows - sum(files)
    if finish and rest:
        # A last file of a few rows is worth no file of its own.
        if 2 * rest < each:
            files[-1] += rest
        else:
            files.append(rest)
        rest = 0
    return Cut(tuple(files), rest)


def suffix(folder: str, schema: pa.Schema) -> str:
    """What the name of a part ends in."""
    known = folder.encode() + b"\0" + schema.remove_metadata().serialize().to_pybytes()
    return _OPEN + blake2b(known, digest_size=8).hexdigest()


def encode(folder: str, rows: pa.Table) -> bytes:
    """A part."""
    return to_ipc(rows.replace_schema_metadata({_FOLDER: folder.encode()}))


def read(store: Store, parts: Sequence[StagedOutput]) -> tuple[str, pa.Table]:
    """The folder, and the rows, of parts of one folder, in their order."""
    tables = []
    for part in parts:
        try:
            table = from_ipc(read_staged(store, part))
        except FileNotFoundError as error:
            message = "rows that wait for their file are gone; restore the snapshot folder from a backup"
            raise CorruptData(message, object=part.path) from error
        tables.append(table)
    folders = {(each.schema.metadata or {}).get(_FOLDER) for each in tables}
    (folder,) = folders if len(folders) == 1 else (None,)
    if folder is None:
        raise InternalError("these are not the parts of one folder", objects=[each.path for each in parts])
    return folder.decode(), pa.concat_tables(each.replace_schema_metadata(None) for each in tables)


def by_folder(open: Iterable[StagedOutput]) -> dict[str, list[StagedOutput]]:
    """Parts by the suffix of their names."""
    found: dict[str, list[StagedOutput]] = {}
    for each in open:
        ending = each.path.rpartition(".")[2]
        if not ending.startswith(_OPEN):
            raise InternalError("this is no open file of a sink of files", object=each.path)
        found.setdefault(ending, []).append(each)
    return found


def crowded(parts: Sequence[StagedOutput]) -> int:
    """How many of the newest parts are to become one with the new rows: none before there are `MOST_PARTS`."""
    if len(parts) < MOST_PARTS:
        return 0
    # Only what is not larger than everything behind it, so that large parts are not staged again for a few rows.
    count, size = 2, sum(each.bytes for each in parts[-2:])
    while count < len(parts) and parts[-count - 1].bytes <= size:
        size += parts[-count - 1].bytes
        count += 1
    return count
