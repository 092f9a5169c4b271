"""What a user hands in is looked at before anything is begun: a wrong type is told here, not by whoever trips over it on the cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from flowstate.errors import InvalidFlow
from flowstate.plan.window import duration


def place(what: str, url: object) -> str:
    """A path or a URL as text; a path is made absolute."""
    text = os.fspath(url) if isinstance(url, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise InvalidFlow(f"{what} is a folder or a URL, such as 'snapshots/' or 's3://bucket/path'", got=repr(url))
    return text if "://" in text else os.path.abspath(text)


def whole(what: str, value: object, least: int) -> int:
    """A whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidFlow(f"{what} is a whole number of at least {least}", got=repr(value))
    return value


def flag(what: str, value: object) -> bool:
    """True or False, and nothing that merely looks so."""
    if not isinstance(value, bool):
        raise InvalidFlow(f"{what} is True or False", got=repr(value))
    return value


def seconds(what: str, value: object) -> float:
    """A number of seconds, not negative."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise InvalidFlow(f"{what} is a number of seconds", got=repr(value))
    return float(value)


def period(what: str, text: Any, least: float) -> float:
    """Seconds of a duration such as ``"10s"``, at least `least`."""
    length = duration(text) / 1e6
    if length < least:
        raise InvalidFlow(f"{what} is at least {least:g} s", got=text)
    return length


_SIZES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}


def size(what: str, value: object) -> int:
    """Bytes of a size such as ``"10GB"`` or ``"512MiB"``; at least one."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?i?B)", value) if isinstance(value, str) else None
    if found is None or found[2] not in _SIZES or (wanted := int(float(found[1]) * _SIZES[found[2]])) < 1:
        raise InvalidFlow(f"{what} is a size such as '10GB' or '512MiB'", got=repr(value))
    return wanted


def name(what: str, value: object) -> str:
    """A name that a person can type."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InvalidFlow(f"{what} is a text of at least one letter", got=repr(value))
    return value


def options(what: str, value: object) -> dict[str, Any]:
    """Settings by their names."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        raise InvalidFlow(f"{what} is a mapping of names to settings", got=type(value).__name__)
    return dict(value)


def client(value: Any) -> None:
    """A Dask client that blocks: what `start` and `Job` call its cluster with."""
    from distributed import Client

    if not isinstance(value, Client):
        raise InvalidFlow("client is a distributed.Client; connect one with Client(address)", got=type(value).__name__)
    if value.asynchronous:
        raise InvalidFlow("client is asynchronous; give one that blocks: Client(address), made outside of coroutines")
