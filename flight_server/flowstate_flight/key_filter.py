"""Which keys a filter allows, so that only their owners are asked.

An expression has no public tree in pyarrow, but its Substrait bytes are one: a small reader of that format finds, per routing column,
a finite set of literals outside of which the filter cannot be true. It claims nothing about what it does not recognise, so the
worst that it can do is to ask everybody; the filter itself is always applied where the rows are.

For a filter e and a column c, the domain D(e, c) contains every value that c has in a row for which e is true; None is no bound:
D(a and b) is the smaller of D(a), D(b); D(a or b) their union; D(c = v) = {v}; D(c in L) = L; D(c is null) = {null};
D(if p then a else b) = D(p and a) with D(b); D(false) = D(null) = {}.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.substrait
from pyarrow import acero

from flowstate.view.directory import ViewInfo

MAX_KEYS = 10_000
MAX_DEPTH = 200

# field numbers of substrait's extended_expression.proto and algebra.proto
_EXTENSIONS, _REFERRED = 2, 3
_LITERAL, _SELECTION, _FUNCTION, _IF_THEN, _IN_LIST = 1, 2, 3, 6, 8
_LITERAL_NULL, _LITERAL_BOOLEAN = 29, 1
_NULL = b""  # stands for null among the encoded literals

Fields = list[tuple[int, "int | bytes"]]


def allowed_keys(encoded: bytes, names: list[str], info: ViewInfo) -> pa.RecordBatch | None:
    """A batch of routing keys (perhaps empty) outside of which the filter is never true; None if it does not bound them.
    `encoded` is what `encode_filter` gave, `names` the columns of its base schema."""
    if not info.routing_keys or not set(info.routing_keys) <= set(names):
        return None
    types = [info.schema.field(name).type for name in info.routing_keys]
    try:
        reader = _Reader(encoded)
        domains = [reader.domain(reader.root, names.index(name)) for name in info.routing_keys]
        known = [each for each in domains if each is not None]
        if len(known) < len(domains):
            return None
        rows = 1
        for each in known:
            rows *= len(each)
        if rows > MAX_KEYS:
            return None
        columns = [reader.values(sorted(each), kind) for each, kind in zip(known, types, strict=True)]
    except (_Unknown, pa.ArrowException, NotImplementedError, ValueError, RecursionError):
        return None
    combined = list(product(*(range(len(each)) for each in columns)))
    taken = [each.take(pa.array([row[at] for row in combined], pa.int64())) for at, each in enumerate(columns)]
    return pa.RecordBatch.from_arrays(taken, names=list(info.routing_keys))


class _Unknown(Exception):
    """The bytes are not what this reader knows."""


class _Reader:
    def __init__(self, encoded: bytes) -> None:
        self._fields = list(_fields(encoded))
        self._functions: dict[int, str] = {}
        for each in _all(self._fields, _EXTENSIONS):
            for declaration in _all(list(_fields(each)), 3):
                function = list(_fields(declaration))
                self._functions[_number(function, 2)] = _one(function, 3).decode().partition(":")[0]
        referred = _all(self._fields, _REFERRED)
        if len(referred) != 1:
            raise _Unknown
        self.root = _one(list(_fields(referred[0])), 1)

    def domain(self, expression: bytes, column: int, depth: int = 0) -> frozenset[bytes] | None:
        """D(e, c), as encoded literals."""
        if depth > MAX_DEPTH:
            return None
        parts = list(_fields(expression))
        if len(parts) != 1:
            return None
        kind, body = parts[0]
        assert isinstance(body, bytes)
        inner = list(_fields(body))
        if kind == _LITERAL:
            return frozenset() if _is_null(inner) or inner == [(_LITERAL_BOOLEAN, 0)] else None
        if kind == _IN_LIST:
            options = _all(inner, 2)
            if _column(_one(inner, 1)) == column and all(_literal(each) is not None for each in options):
                return frozenset(each for each in options if not _null_literal(each))
            return None
        if kind == _IF_THEN:
            otherwise = _all(inner, 2)
            found = self.domain(otherwise[0], column, depth + 1) if otherwise else frozenset()
            for clause in _all(inner, 1):
                branch = list(_fields(clause))
                met = [self.domain(_one(branch, at), column, depth + 1) for at in (1, 2)]
                found = _union(found, _smaller(met[0], met[1]))
            return found
        if kind == _FUNCTION:
            return self._function(inner, column, depth)
        return None

    def _function(self, inner: Fields, column: int, depth: int) -> frozenset[bytes] | None:
        name = self._functions.get(_number(inner, 1))
        arguments = [_one(list(_fields(each)), 3) for each in _all(inner, 4)]
        if name in ("and", "or") and arguments:
            found = self.domain(arguments[0], column, depth + 1)
            for each in arguments[1:]:
                other = self.domain(each, column, depth + 1)
                found = _smaller(found, other) if name == "and" else _union(found, other)
            return found
        if name == "equal" and len(arguments) == 2:
            for one, other in (arguments, arguments[::-1]):
                if _column(one) == column and _literal(other) is not None:
                    return frozenset() if _null_literal(other) else frozenset([other])
        if name == "is_null" and len(arguments) == 1 and _column(arguments[0]) == column:
            return frozenset([_NULL])
        return None

    def values(self, literals: list[bytes], kind: pa.DataType) -> pa.Array:
        """Encoded literals as an array of `kind`. Arrow itself decodes them: they are put back as the expressions of the
        message, and evaluated. Raises if one does not fit the type exactly."""
        present = [each for each in literals if each != _NULL]
        arrays = [pa.nulls(len(literals) - len(present), kind)]
        if present:
            head = [(number, value) for number, value in self._fields if number != _REFERRED]
            names = [f"value{at}" for at in range(len(present))]
            referred = [
                (_REFERRED, _message([(1, each), (3, name.encode())])) for each, name in zip(present, names, strict=True)
            ]
            bound = pyarrow.substrait.deserialize_expressions(pa.py_buffer(_message([*referred, *head])))
            row = pa.table({"row": pa.array([0])})
            plan = [
                acero.Declaration("table_source", acero.TableSourceNodeOptions(row)),
                acero.Declaration("project", acero.ProjectNodeOptions([bound.expressions[name] for name in names], names)),
            ]
            table = acero.Declaration.from_sequence(plan).to_table(use_threads=False)
            arrays += [column.combine_chunks().cast(kind) for column in table.columns]
        return pc.unique(pa.concat_arrays(arrays))


def _smaller(one: frozenset[bytes] | None, other: frozenset[bytes] | None) -> frozenset[bytes] | None:
    if one is None or other is None:
        return other if one is None else one
    return one if len(one) <= len(other) else other


def _union(one: frozenset[bytes] | None, other: frozenset[bytes] | None) -> frozenset[bytes] | None:
    return None if one is None or other is None else one | other


def _column(expression: bytes) -> int | None:
    """The column of the base schema that an expression is, if it is one."""
    parts = list(_fields(expression))
    if len(parts) != 1 or parts[0][0] != _SELECTION or not isinstance(parts[0][1], bytes):
        return None
    reference = list(_fields(parts[0][1]))
    if {number for number, _ in reference} - {1, 4}:
        return None
    segment = list(_fields(_one(reference, 1)))
    if len(segment) != 1 or segment[0][0] != 2:
        return None
    field = list(_fields(_one(segment, 2)))
    if {number for number, _ in field} - {1}:
        return None  # a field of a struct
    return _number(field, 1)


def _literal(expression: bytes) -> Fields | None:
    parts = list(_fields(expression))
    if len(parts) != 1 or parts[0][0] != _LITERAL or not isinstance(parts[0][1], bytes):
        return None
    return list(_fields(parts[0][1]))


def _null_literal(expression: bytes) -> bool:
    found = _literal(expression)
    return found is not None and _is_null(found)


def _is_null(literal: Fields) -> bool:
    return any(number == _LITERAL_NULL for number, _ in literal)


def _one(fields: Fields, number: int) -> bytes:
    found = _all(fields, number)
    if len(found) != 1:
        raise _Unknown
    return found[0]


def _all(fields: Fields, number: int) -> list[bytes]:
    found = [value for at, value in fields if at == number]
    if not all(isinstance(value, bytes) for value in found):
        raise _Unknown
    return found  # type: ignore[return-value]


def _number(fields: Fields, number: int) -> int:
    """A number, which protobuf leaves out when it is 0."""
    found = [value for at, value in fields if at == number]
    if not found:
        return 0
    if len(found) > 1 or not isinstance(found[0], int):
        raise _Unknown
    return found[0]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _Unknown
        if at + length > len(message):
            raise _Unknown
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise _Unknown
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _message(fields: Fields) -> bytes:
    out = bytearray()
    for number, value in fields:
        wire = 0 if isinstance(value, int) else 2
        out += _encode(number << 3 | wire)
        out += _encode(value) if isinstance(value, int) else _encode(len(value)) + value
    return bytes(out)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
