"""A strict reader of the part of Substrait that filters need.

Arrow's own reader trusts its input too far: a decimal of precision 46 in a filter aborts the process. So bytes from outside are
checked here, field by field against a table of what is allowed, before Arrow sees them: columns, literals, comparisons, and / or /
not, null tests, membership and if-then. These mean the same in every time zone and for every null, which keeps filters exact.
"""

from __future__ import annotations

from flowstate_flight.protobuf import Fields, Unknown, every, fields, number, one, single, text

MAX_DEPTH = 60
# field numbers in algebra.proto and extended_expression.proto
EXTENSIONS, REFERRED, BASE_SCHEMA = 2, 3, 4
LITERAL, SELECTION, FUNCTION, IF_THEN, IN_LIST = 1, 2, 3, 6, 8
LITERAL_BOOLEAN, LITERAL_NULL = 1, 29

#: Functions and how many arguments they take at least and at most.
FUNCTIONS = {
    **dict.fromkeys(["equal", "not_equal", "lt", "lte", "gt", "gte"], (2, 2)),
    **dict.fromkeys(["not", "is_null", "is_not_null", "is_nan"], (1, 1)),
    **dict.fromkeys(["and", "or"], (2, 1000)),
}
_EXTENSION_TYPES = frozenset({"u8", "u16", "u32", "u64", "large_string", "large_binary", "time_millis", "time_nanos"})
_SIMPLE_TYPES = frozenset({1, 2, 3, 5, 7, 10, 11, 12, 13, 16, 17})
_INTEGERS = {1: 1, 2: 8, 3: 16, 5: 32, 7: 64, 14: 64, 16: 32, 17: 64, 27: 64}  # literal: bits
_PAYLOADS = {f"type.googleapis.com/google.protobuf.{name}Value" for name in ("UInt64", "UInt32", "Int32", "Int64")}
_TEXTS = {f"type.googleapis.com/google.protobuf.{name}Value" for name in ("String", "Bytes")}


class Filter:
    """One extended expression, checked. `root` is the expression itself, `names` the columns of its base schema."""

    def __init__(self, encoded: bytes) -> None:
        """Raises Unknown for anything outside of the allowed part."""
        self.fields = list(fields(encoded))
        _only(self.fields, {1, EXTENSIONS, REFERRED, BASE_SCHEMA, 7})
        self.functions: dict[int, str] = {}
        self._types: set[int] = set()
        for each in every(self.fields, 1):
            uri = list(fields(each))
            _only(uri, {1, 2})
            number(uri, 1)
            text(one(uri, 2))
        for each in every(self.fields, EXTENSIONS):
            self._declare(list(fields(each)))
        for each in every(self.fields, 7):
            _version(list(fields(each)))
        referred = list(fields(one(self.fields, REFERRED)))
        _only(referred, {1, 3})
        for each in every(referred, 3):
            text(each)
        self.names = self._base(list(fields(one(self.fields, BASE_SCHEMA))))
        self.root = one(referred, 1)
        self._expression(self.root, 0)

    def _declare(self, declaration: Fields) -> None:
        _only(declaration, {1, 3})
        if len(declaration) != 1:
            raise Unknown
        for at, into in ((1, self._types), (3, self.functions)):
            for each in every(declaration, at):
                body = list(fields(each))
                _only(body, {1, 2, 3})
                anchor, name = number(body, 2), text(one(body, 3)).partition(":")[0]
                if anchor in into or name not in (FUNCTIONS if at == 3 else _EXTENSION_TYPES):
                    raise Unknown
                if isinstance(into, dict):
                    into[anchor] = name
                else:
                    into.add(anchor)

    def _base(self, base: Fields) -> list[str]:
        _only(base, {1, 2})
        names = [text(each) for each in every(base, 1)]
        struct = list(fields(one(base, 2)))
        _only(struct, {1, 2, 3})
        types = every(struct, 1)
        if len(types) != len(names):
            raise Unknown
        for each in types:
            self._type(each)
        return names

    def _type(self, encoded: bytes) -> None:
        kind, body = single(encoded)
        inside = list(fields(body))
        if kind in _SIMPLE_TYPES:
            _numbers(inside, {1: 0, 2: 2})
        elif kind == 23:  # fixed size binary
            _numbers(inside, {1: 1 << 16, 2: 0, 3: 2})
            if number(inside, 1) < 1:
                raise Unknown
        elif kind == 24:  # decimal: scale, precision
            _numbers(inside, {1: 38, 2: 38, 3: 0, 4: 2})
            _precision(number(inside, 2), number(inside, 1))
        elif kind == 30:  # of Arrow's own
            _numbers(inside, {1: 100, 2: 0, 3: 2})
            if number(inside, 1) not in self._types:
                raise Unknown
        elif kind in (33, 34):  # timestamps
            _numbers(inside, {1: 9, 2: 0, 3: 2})
            if number(inside, 1) % 3:
                raise Unknown
        else:
            raise Unknown

    def _expression(self, encoded: bytes, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Unknown
        kind, body = single(encoded)
        inside = list(fields(body))
        if kind == LITERAL:
            self._literal(inside)
        elif kind == SELECTION:
            at = column(encoded)
            if at is None or at >= len(self.names):
                raise Unknown
        elif kind == FUNCTION:
            _only(inside, {1, 3, 4})
            for each in every(inside, 3):
                self._type(each)
            least, most = FUNCTIONS[self._function(inside)]
            given = arguments(inside)
            if not least <= len(given) <= most:
                raise Unknown
            for each in given:
                self._expression(each, depth + 1)
        elif kind == IF_THEN:
            _only(inside, {1, 2})
            for clause in every(inside, 1):
                branch = list(fields(clause))
                _only(branch, {1, 2})
                self._expression(one(branch, 1), depth + 1)
                self._expression(one(branch, 2), depth + 1)
            self._expression(one(inside, 2), depth + 1)
            if not every(inside, 1):
                raise Unknown
        elif kind == IN_LIST:
            _only(inside, {1, 2})
            self._expression(one(inside, 1), depth + 1)
            options = every(inside, 2)
            if not options:
                raise Unknown
            for each in options:
                if single(each)[0] != LITERAL:
                    raise Unknown
                self._expression(each, depth + 1)
        else:
            raise Unknown

    def _function(self, inside: Fields) -> str:
        name = self.functions.get(number(inside, 1))
        if name is None:
            raise Unknown
        return name

    def _literal(self, inside: Fields) -> None:
        _only(inside, {*_INTEGERS, 10, 11, 12, 13, 23, 24, LITERAL_NULL, 33, 50})
        for each in [value for at, value in inside if at == 50]:
            if each not in (0, 1):
                raise Unknown
        values = [(at, value) for at, value in inside if at != 50]
        if len(values) != 1:
            raise Unknown
        kind, value = values[0]
        if kind in _INTEGERS:
            _integer(value, _INTEGERS[kind])
            return
        if not isinstance(value, bytes):
            raise Unknown
        if kind == 10 or kind == 11:
            if len(value) != (4 if kind == 10 else 8):
                raise Unknown
        elif kind == 12:
            text(value)
        elif kind == 23:
            if not value:
                raise Unknown
        elif kind == 24:
            decimal = list(fields(value))
            _only(decimal, {1, 2, 3})
            if len(one(decimal, 1)) != 16:
                raise Unknown
            _precision(number(decimal, 2), number(decimal, 3))
        elif kind == LITERAL_NULL:
            self._type(value)
        elif kind == 33:
            self._extension_literal(list(fields(value)))

    def _extension_literal(self, body: Fields) -> None:
        _only(body, {1, 2})
        if number(body, 1) not in self._types:
            raise Unknown
        wrapped = list(fields(one(body, 2)))
        _only(wrapped, {1, 2})
        url = text(one(wrapped, 1))
        payload = list(fields(b"".join(every(wrapped, 2))))
        _only(payload, {1})
        if url in _PAYLOADS:
            number(payload, 1)
        elif url in _TEXTS:
            text(b"".join(every(payload, 1))) if "String" in url else every(payload, 1)
        else:
            raise Unknown


def column(expression: bytes) -> int | None:
    """The column of the base schema that an expression is, if it is one."""
    kind, body = single(expression)
    if kind != SELECTION:
        return None
    reference = list(fields(body))
    _only(reference, {1, 4})
    if any(each != b"" for each in every(reference, 4)):
        raise Unknown
    kind, segment = single(one(reference, 1))
    inside = list(fields(segment))
    if kind != 2 or any(at != 1 for at, _ in inside):
        raise Unknown  # into a struct, a list or a map
    return number(inside, 1)


def arguments(function: Fields) -> list[bytes]:
    """The argument expressions of a function."""
    found = []
    for each in every(function, 4):
        kind, value = single(each)
        if kind != 3:
            raise Unknown
        found.append(value)
    return found


def _only(message: Fields, allowed: set[int]) -> None:
    if any(at not in allowed for at, _ in message):
        raise Unknown


def _numbers(message: Fields, most: dict[int, int]) -> None:
    _only(message, set(most))
    if any(number(message, at) > limit for at, limit in most.items()):
        raise Unknown


def _precision(precision: int, scale: int) -> None:
    if not (1 <= precision <= 38 and 0 <= scale <= precision):
        raise Unknown


def _integer(value: object, bits: int) -> None:
    """Signed, as protobuf writes it: negative ones in 64 bits."""
    if not isinstance(value, int):
        raise Unknown
    signed = value - (1 << 64) if value >= 1 << 63 else value
    if bits == 1:
        if value > 1:
            raise Unknown
    elif not -(1 << bits - 1) <= signed < 1 << bits - 1:
        raise Unknown


def _version(message: Fields) -> None:
    for at, value in message:
        if at not in (1, 2, 3, 4, 5):
            raise Unknown
        if isinstance(value, bytes):
            text(value)
