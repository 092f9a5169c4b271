"""Protobuf's wire format, read and written without its library: a message is a list of (field number, value).

Values are numbers, or bytes for everything that has a length (texts, bytes, messages), and for what has a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator

Fields = list[tuple[int, "int | bytes"]]


class Unknown(Exception):
    """The bytes are not what this reader knows."""


def single(message: bytes) -> tuple[int, bytes]:
    """A message that has exactly one field, itself a message."""
    found = list(fields(message))
    if len(found) != 1 or not isinstance(found[0][1], bytes):
        raise Unknown
    return found[0][0], found[0][1]


def one(message: Fields, at: int) -> bytes:
    found = every(message, at)
    if len(found) != 1:
        raise Unknown
    return found[0]


def every(message: Fields, at: int) -> list[bytes]:
    found = [value for number, value in message if number == at]
    if not all(isinstance(value, bytes) for value in found):
        raise Unknown
    return found  # type: ignore[return-value]


def number(message: Fields, at: int) -> int:
    """A number, which protobuf leaves out when it is 0."""
    found = [value for number, value in message if number == at]
    if not found:
        return 0
    if len(found) > 1 or not isinstance(found[0], int):
        raise Unknown
    return found[0]


def text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Unknown from None


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message; fixed-size values as their bytes."""
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
            raise Unknown
        if at + length > len(message):
            raise Unknown
        yield tag >> 3, message[at : at + length]
        at += length


def write(message: Fields) -> bytes:
    """A message of numbers and length-delimited fields."""
    out = bytearray()
    for at, value in message:
        out += _encode(at << 3 | (0 if isinstance(value, int) else 2))
        out += _encode(value) if isinstance(value, int) else _encode(len(value)) + value
    return bytes(out)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise Unknown
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 1 << 64:
                raise Unknown
            return value, at
        shift += 7


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
