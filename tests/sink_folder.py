"""Reading back what a sink of files has written, as others would."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from flowstate.sink.base import Sink
from flowstate.sink.files import FileSink
from flowstate.store import Store
from flowstate.testing.sink_incarnation import Step, SteppingStore


def files(store: Store) -> dict[str, bytes]:
    """All visible files."""
    return {path: store.read(path) for path in _paths(store, "")}


class Folder:
    """The rows of all visible files, with the values of their folders (as text). Files never change, so each is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read: dict[str, list[dict[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in _paths(self.store, ""):
            if path not in self._read:
                folders = dict(part.split("=", 1) for part in path.split("/")[:-1])
                self._read[path] = [{**row, **folders} for row in rows_in(path, self.store.read(path))]
            found += self._read[path]
        return found


def _paths(store: Store, folder: str) -> Iterator[str]:
    for name in store.list(folder):
        path = f"{folder}/{name}" if folder else name
        if "." in name:
            yield path
        else:
            yield from _paths(store, path)


def everything(store: Store) -> list[dict[str, Any]]:
    return Folder(store).rows()


def rows_in(name: str, data: bytes) -> list[dict[str, Any]]:
    """The rows of one file."""
    if name.endswith(".gz"):
        name, data = name[:-3], gzip.decompress(data)
    if name.endswith(".zst"):
        name, data = name[:-4], pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    if name.endswith(".parquet"):
        return list(pq.read_table(pa.BufferReader(data)).to_pylist())
    if name.endswith(".csv"):
        options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
        return list(pyarrow.csv.read_csv(pa.BufferReader(data), convert_options=options).to_pylist())
    assert name.endswith(".jsonl")
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data[:-1].split(b"\n")]


def watch_target(sink: Sink, step: Step) -> None:
    """Between any two operations on the target there is a place to die."""
    assert isinstance(sink, FileSink)
    sink.target = SteppingStore(sink.target, step)
