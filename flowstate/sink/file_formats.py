"""What a file holds: Parquet, CSV, or JSON Lines. A format turns rows into the bytes of one whole file."""

from __future__ import annotations

import gzip
import io
from abc import ABC, abstractmethod
from base64 import b64encode

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from flowstate.errors import InternalError, InvalidFlow, did_you_mean
from flowstate.sink import json_text

_SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400
#: Days of the years 1 to 9999, which have a text in ISO 8601: the first one, and the one after the last.
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_897
_BASE64 = "base64:"


class FileFormat(ABC):
    """`name` is the kind of the sink, `suffix` what names of its files end in. Equal rows give equal bytes."""

    name: str
    suffix: str
    compressions: tuple[str, ...]

    def __init__(self, compression: str | None) -> None:
        self.compression = compression if compression is not None else self.compressions[0]
        if self.compression not in self.compressions:
            hint = did_you_mean(str(compression), self.compressions)
            raise InvalidFlow(f"sink_{self.name} has no compression {compression!r}{hint}")

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """InvalidFlow if files cannot hold rows of `schema`."""

    @abstractmethod
    def encode(self, rows: pa.Table) -> bytes:
        """The bytes of a file with `rows`, of which there is at least one."""


class Parquet(FileFormat):
    """`compression`: zstd (default), snappy, gzip, brotli, lz4, none."""

    name = "parquet"
    suffix = "parquet"
    compressions = ("zstd", "snappy", "gzip", "brotli", "lz4", "none")

    def check(self, schema: pa.Schema) -> None:
        for field in schema:
            try:
                self.encode(pa.schema([field]).empty_table())
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                message = "Parquet cannot hold this column; cast it, or leave it out with select"
                raise InvalidFlow(message, column=field.name, type=str(field.type)) from error

    def encode(self, rows: pa.Table) -> bytes:
        buffer = io.BytesIO()
        try:
            pq.write_table(rows, buffer, compression=self.compression)
        except (OSError, TypeError) as error:
            message = "this compression is not in this build of pyarrow; try zstd"
            raise InvalidFlow(message, compression=self.compression) from error
        return buffer.getvalue()


class JsonLines(FileFormat):
    """One object a line, in UTF-8; `json_text` says how values are written. `compression`: none (default), gzip, zstd."""

    name = "json"
    compressions = ("none", "gzip", "zstd")

    def __init__(self, compression: str | None) -> None:
        super().__init__(compression)
        self.suffix = "jsonl" + _SUFFIXES[self.compression]

    def check(self, schema: pa.Schema) -> None:
        for field in schema:
            if not json_text.supports(field.type):
                message = "JSON has no text for this column; cast it, or leave it out with select"
                raise InvalidFlow(message, column=field.name, type=str(field.type))

    def encode(self, rows: pa.Table) -> bytes:
        return _compressed(b"\n".join([*json_text.rows(rows), b""]), self.compression)


class Csv(FileFormat):
    """RFC 4180 in UTF-8 with lines that end in a bare newline, and a header in every file. `compression`: none (default), gzip, zstd.

    A null is nothing at all (``,,``), text always stands in quotes, so that the empty text is ``""``. Numbers have all their digits; dates
    and times are ISO 8601 (with a zone: in UTC, ending in ``Z``), or integers of the column's unit outside the years 1 to 9999; durations
    are integers of their unit. Binary is its text where it is UTF-8, else ``base64:`` and its base64. Text may hold newlines, which most
    readers take but those that read line by line (as `scan_files`) do not: use JSON for those.
    """

    name = "csv"
    compressions = ("none", "gzip", "zstd")

    def __init__(self, compression: str | None) -> None:
        super().__init__(compression)
        self.suffix = "csv" + _SUFFIXES[self.compression]

    def check(self, schema: pa.Schema) -> None:
        for field in schema:
            if pa.types.is_nested(field.type):
                message = (
                    "CSV has no nested values; take the fields apart with select, or use sink_json or sink_parquet"
                )
                raise InvalidFlow(message, column=field.name, type=str(field.type))
            if not json_text.supports(field.type):
                message = "CSV has no text for this column; cast it, or leave it out with select"
                raise InvalidFlow(message, column=field.name, type=str(field.type))
        if len(schema) == 1 and schema.field(0).nullable:
            message = "a null in a CSV file of one column is an empty line, which readers skip; add a column, or use sink_json"
            raise InvalidFlow(message, column=schema.field(0).name)

    def encode(self, rows: pa.Table) -> bytes:
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(_plain(rows), buffer)
        return _compressed(buffer.getvalue(), self.compression)


FORMATS: dict[str, type[FileFormat]] = {each.name: each for each in (Parquet, Csv, JsonLines)}


def _compressed(data: bytes, compression: str) -> bytes:
    match compression:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "zstd":
            return bytes(pa.compress(data, codec="zstd", asbytes=True))
    raise InternalError("no such compression", compression=compression)


def _plain(rows: pa.Table) -> pa.Table:
    """`rows` with columns that Arrow's CSV writer writes as `Csv` promises."""
    return pa.table([_column(each) for each in rows.columns], names=rows.schema.names)


def _column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = [_writable(each) for each in column.chunks] or [_writable(pa.array([], column.type))]
    return pa.chunked_array(chunks)


def _writable(values: pa.Array) -> pa.Array:
    kind, is_ = values.type, pa.types
    if is_.is_dictionary(kind):
        return _writable(values.cast(kind.value_type))
    if is_.is_null(kind):
        return values.cast(pa.string())
    if is_.is_float16(kind):
        return values.cast(pa.float32())
    if is_.is_duration(kind):
        return values.cast(pa.int64())
    if is_.is_string_view(kind):
        return values.cast(pa.large_string())
    if is_.is_decimal(kind) and kind.bit_width < 128:
        return values.cast(pa.decimal128(kind.precision, kind.scale))
    if is_.is_date(kind):
        texts, numbers = values.cast(pa.string()), values.view(_integer(kind)).cast(pa.int64())
        return _dated(texts, numbers, 1 if is_.is_date32(kind) else _DAY * 1000, _FIRST_DAY, _LAST_DAY)
    if is_.is_timestamp(kind):
        texts = values.view(pa.timestamp(kind.unit)).cast(pa.string())
        texts = pc.replace_substring(texts, " ", "T", max_replacements=1)
        if kind.tz is not None:
            texts = pc.binary_join_element_wise(texts, "Z", "")
        return _dated(texts, values.view(pa.int64()), _UNITS[kind.unit], _FIRST_DAY * _DAY, _LAST_DAY * _DAY)
    if is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_binary_view(kind) or is_.is_fixed_size_binary(kind):
        return pa.array([None if each is None else _binary(each) for each in values.to_pylist()], pa.large_string())
    return values


def _integer(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def _dated(texts: pa.Array, numbers: pa.Array, unit: int, first: int, last: int) -> pa.Array:
    """`texts`, but `numbers` where these are outside ``[first, last)`` in `unit`."""
    low, high = max(first * unit, -(2**63)), min(last * unit - 1, 2**63 - 1)
    known = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    return texts if pc.all(known, min_count=0).as_py() else pc.if_else(known, texts, numbers.cast(pa.string()))


def _binary(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = _BASE64
    return _BASE64 + b64encode(value).decode() if text.startswith(_BASE64) else text
