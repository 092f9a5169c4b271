"""A Flight exchange without a Flight client: HTTP/2 frames on a socket, so that messages can be sent that no client would make."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

from flowstate_flight.protobuf import Fields, fields, write

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACKNOWLEDGED = 1, 4, 1
#: Fields of a FlightData.
DESCRIPTOR, HEADER, METADATA, BODY = 1, 2, 3, 1000


class Exchange:
    """One DoExchange on a connection of its own. Raises TimeoutError when the peer says nothing for twenty seconds."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""
        self._message = b""
        self.ended = False
        whole = {
            ":method": "POST", ":scheme": "http", ":path": "/arrow.flight.protocol.FlightService/DoExchange", ":authority": "localhost",
            "te": "trailers", "content-type": "application/grpc", **headers,
        }  # fmt: skip
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in whole.items())
        self._send(
            PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))
            + _frame(HEADERS, END_HEADERS, 1, block)
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, message: bytes) -> None:
        """A message of gRPC, whatever it holds. Nothing happens when the peer has ended the exchange."""
        raw = b"\x00" + struct.pack(">I", len(message)) + message
        self._send(b"".join(_frame(DATA, 0, 1, raw[at : at + 16_384]) for at in range(0, len(raw), 16_384)))

    def receive(self) -> Fields | None:
        """The next message, as fields; None when the exchange has ended."""
        while True:
            if len(self._message) >= 5:
                (size,) = struct.unpack(">I", self._message[1:5])
                if len(self._message) >= 5 + size:
                    found, self._message = self._message[5 : 5 + size], self._message[5 + size :]
                    return list(fields(found))
            if self.ended or not self._step():
                self.ended = True
                return None

    def _step(self) -> bool:
        """Read a frame; whether there was one."""
        while len(self._read) < 9 or len(self._read) < 9 + int.from_bytes(self._read[:3], "big"):
            try:
                piece = self._socket.recv(65_536)
            except ConnectionError:
                return False
            if not piece:
                return False
            self._read += piece
        size = int.from_bytes(self._read[:3], "big")
        kind, flags, payload = self._read[3], self._read[4], self._read[9 : 9 + size]
        self._read = self._read[9 + size :]
        if kind == DATA:
            self._message += payload
            if payload:
                self._send(_frame(WINDOW, 0, 1, struct.pack(">I", len(payload))))
        elif kind in (SETTINGS, PING) and not flags & ACKNOWLEDGED:
            self._send(_frame(kind, ACKNOWLEDGED, 0, payload if kind == PING else b""))
        self.ended = self.ended or kind in (RESET, GOAWAY) or (kind in (DATA, HEADERS) and bool(flags & END_STREAM))
        return True

    def _send(self, raw: bytes) -> None:
        try:
            self._socket.sendall(raw)
        except ConnectionError:
            self.ended = True


def flight_data(
    header: bytes = b"", metadata: bytes | None = None, body: bytes = b"", command: bytes | None = None
) -> bytes:
    message: Fields = []
    if command is not None:
        message.append((DESCRIPTOR, write([(1, 2), (2, command)])))
    if header:
        message.append((HEADER, header))
    if metadata is not None:
        message.append((METADATA, metadata))
    return write([*message, (BODY, body)])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(text: str) -> bytes:
    """A literal of HPACK, below 127 bytes as its length, or in two steps."""
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest = len(raw) - 127
    assert rest < 16_384
    return (bytes([127, rest]) if rest < 128 else bytes([127, rest & 127 | 128, rest >> 7])) + raw
