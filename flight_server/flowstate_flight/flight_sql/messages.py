"""The messages of Flight SQL. A command, and most bodies of actions, are an `Any`: a name and a message."""

from __future__ import annotations

from itertools import islice

from flowstate.errors import InvalidFlow
from flowstate_flight.protobuf import Fields, Unknown, fields, write
from flowstate_flight.ticket import MAX_TICKET_BYTES

PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
_BEGINNING = PREFIX.encode()
#: Fields of a message, and numbers in one of them: far more than any driver sends, and read within some milliseconds.
MOST = 10_000


def is_flight_sql(raw: bytes | None) -> bool:
    """Whether a command or ticket is one of Flight SQL, and not JSON."""
    return raw is not None and raw[:1] == b"\n" and _BEGINNING in raw[:64]


class Message:
    """A message that was received. What is absent is None, or empty; of what is given twice the last counts, as protobuf has it."""

    def __init__(self, raw: bytes) -> None:
        """Raises InvalidFlow."""
        if len(raw) > MAX_TICKET_BYTES:
            message = "the message is too long; send a shorter query, or fewer parameters at a time"
            raise InvalidFlow(message, bytes=len(raw), limit=MAX_TICKET_BYTES)
        try:
            self._fields: Fields = list(islice(fields(raw), MOST + 1))
        except Unknown:
            raise _damaged() from None
        if len(self._fields) > MOST:
            raise InvalidFlow("the message has too many parts; send fewer at a time", limit=MOST)

    def all(self, at: int) -> list[bytes]:
        """Every value of a repeated field of bytes."""
        return [_bytes(value) for number, value in self._fields if number == at]

    def raw(self, at: int) -> bytes | None:
        found = self.all(at)
        return found[-1] if found else None

    def text(self, at: int) -> str | None:
        found = self.raw(at)
        return None if found is None else _text(found)

    def texts(self, at: int) -> list[str]:
        return [_text(each) for each in self.all(at)]

    def message(self, at: int) -> Message | None:
        found = self.raw(at)
        return None if found is None else Message(found)

    def flag(self, at: int) -> bool:
        return any(value for number, value in self._fields if number == at and isinstance(value, int))

    def numbers(self, at: int) -> list[int]:
        """A repeated field of numbers, packed or not."""
        found = []
        for number, value in self._fields:
            if number == at and isinstance(value, int):
                found.append(value)
            elif number == at:
                found += _packed(_bytes(value))
        return found


def unpack(raw: bytes) -> tuple[str, Message]:
    """Name and message of an `Any`. Raises InvalidFlow."""
    whole = Message(raw)
    url = whole.text(1) or ""
    if not url.startswith(PREFIX):
        raise InvalidFlow("this is no message of Flight SQL", got=url[:100])
    return url[len(PREFIX) :], Message(whole.raw(2) or b"")


def pack(name: str, message: bytes) -> bytes:
    """An `Any`."""
    return write([(1, (PREFIX + name).encode()), (2, message)])


def _packed(raw: bytes) -> list[int]:
    """Numbers one after the other: read as a message of them, each with a tag before it."""
    found, at = [], 0
    if len(raw) > 5 * MOST:
        raise InvalidFlow("the message has too many numbers; send fewer at a time", limit=MOST)
    while at < len(raw):
        end = at
        while end < len(raw) and raw[end] > 127:
            end += 1
        try:
            found += [value for _, value in fields(b"\x08" + raw[at : end + 1]) if isinstance(value, int)]
        except Unknown:
            raise _damaged() from None
        at = end + 1
    return found


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _damaged()
    return value


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _damaged() from None


def _damaged() -> InvalidFlow:
    return InvalidFlow("this is no sound message of Flight SQL")
