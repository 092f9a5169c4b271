"""What a command line says of where a job is, as whom it is asked, how fresh the answer must be, and of which key."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from flowstate.api.finding import reader_of
from flowstate.errors import InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness, checked
from flowstate.view.tls import pem
from flowstate_flight.client import FlightReader

if TYPE_CHECKING:
    from flowstate.runtime.saved_states import SavedStates

_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^/\\:\s]+):[0-9]{1,5}")


@dataclass(frozen=True)
class Place:
    """`where` is a Flight address (``host:port``, ``grpc://host:port``, ``grpc+tls://host:port``), or a folder or URL of snapshots.
    `roots`, `certificate` and `key` are PEM files."""

    where: str
    job: str | None = None
    token: str | None = None
    roots: str | None = None
    certificate: str | None = None
    key: str | None = None

    @property
    def address(self) -> str | None:
        """The Flight address, if it is one. With `roots` a bare ``host:port`` is reached by TLS, and no token goes there in the clear."""
        scheme, separator, _ = self.where.partition("://")
        if scheme.startswith("grpc") and separator:
            return self.where
        if separator or _HOST_AND_PORT.fullmatch(self.where) is None:
            return None
        return f"{'grpc' if self.roots is None else 'grpc+tls'}://{self.where}"

    @contextmanager
    def opened(self, patience: float = 10.0) -> Iterator[tuple[FlightReader, SavedStates | None]]:
        """A reader of the job with so many seconds of patience, and its saved side if this is the place of its snapshots. Raises
        InvalidFlow, Unavailable."""
        if self.where.startswith(("http://", "https://")):
            message = "this is the address of an HTTP service; give the Flight address of a worker or a gateway, or the job's snapshots"
            raise InvalidFlow(message, got=self.where)
        if (self.certificate is None) != (self.key is None):
            raise InvalidFlow("a certificate and its key belong together: --tls-certificate and --tls-key")
        files = {
            "tls_root_certs": ("--tls-roots", self.roots),
            "cert_chain": ("--tls-certificate", self.certificate),
            "private_key": ("--tls-key", self.key),
        }
        options: dict[str, Any] = {
            name: pem(option, file) for name, (option, file) in files.items() if file is not None
        }
        address = self.address
        snapshots = self.where if address is None else None
        reader, saved = reader_of(address, self.job, snapshots, None, patience=patience, token=self.token, **options)
        try:
            reader.views()
            yield reader, saved
        finally:
            reader.close()


def freshness(
    max_age: float | None, at_least: Sequence[str], consistent: bool, snapshot: int | None, wait: float | None
) -> Freshness:
    """`at_least` are texts ``SPLIT=OFFSET``. Raises InvalidFlow."""
    places: dict[str, int] = {}
    for each in at_least:
        split, _, offset = each.rpartition("=")
        if not split or not offset.isascii() or not offset.isdigit() or split in places:
            raise InvalidFlow(
                "--at-least is SPLIT=OFFSET, such as topic/0=17, and may be given again for another split", got=each
            )
        places[split] = int(offset)
    return checked(max_age=max_age, at_least=places or None, consistent=consistent, snapshot=snapshot, wait=wait)


def key_of(info: ViewInfo, texts: Sequence[str]) -> pa.RecordBatch:
    """One key, in the types of its columns. Raises InvalidFlow."""
    if not info.routing_keys:
        raise InvalidFlow(f"view {info.name!r} has no key; ask for its rows by flowstate sql", view=info.name)
    if not len(info.routing_keys) <= len(texts) <= len(info.keys):
        named = [name if name in info.routing_keys else f"[{name}]" for name in info.keys]
        message = f"a key of view {info.name!r} is {' '.join(named)}; what stands in brackets may be left out"
        raise InvalidFlow(
            message if len(info.routing_keys) < len(info.keys) else message.partition(";")[0], given=len(texts)
        )
    arrays = [_typed(name, info.schema.field(name).type, text) for name, text in zip(info.keys, texts, strict=False)]
    return pa.RecordBatch.from_arrays(arrays, list(info.keys[: len(texts)]))


def _typed(name: str, kind: pa.DataType, text: str) -> pa.Array:
    """Text that is no exact value of `kind` is refused, never rounded."""
    given = pa.array([text])
    try:
        if pa.types.is_time(kind):
            return pa.array([dt.time.fromisoformat(text)], kind)
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            try:
                return given.cast(kind)
            except pa.ArrowInvalid:  # a time without a zone is in UTC, as Arrow takes it
                return given.cast(pa.timestamp(kind.unit)).cast(kind)
        return given.cast(kind)
    except (pa.ArrowException, ValueError):
        pass
    message = f"{text[:100]!r} is no value for {name!r}, a column of type {kind}"
    raise InvalidFlow(
        message
        + ("; times are ISO 8601, such as 2026-05-01 or 2026-05-01T12:30:00Z" if pa.types.is_temporal(kind) else "")
    )
