"""Who a sink is to the other side: a random name, made once in the snapshot store and kept there for as long as it exists.

``sinks/<number>/identity``: every incarnation, every run and every zombie of a job reads the same, and another job another. So what
the other side remembers by it (a sequence, idempotency keys) is never taken for that of a second job with the same target. A copy of
the snapshot folder that is to run as a second job must not have it.

It is there twice, as ``identity`` and ``identity.copy``, before anybody goes by it: with another identity, what is staged and was
published under the one before would be published again. If one of the two is lost or cannot be one, the other stands.
"""

from __future__ import annotations

import secrets

from flowstate.errors import CorruptData
from flowstate.store import Store


def identity(store: Store, sink: int) -> str:
    """Sixteen hexadecimal digits."""
    path = f"sinks/{sink:04d}/identity"
    copy = f"{path}.copy"
    first, second = _read(store, path), _read(store, copy)
    if first is None and second is None and not store.exists(copy):
        store.create(path, secrets.token_hex(8).encode())
        first = _read(store, path)
    name = first or second
    if name is None or (second is not None and second != name):
        message = "the identity of a sink is damaged; restore it, or its copy, from a backup, and delete the other"
        raise CorruptData(message, object=path, copy=copy)
    for each in (path, copy):
        if not store.exists(each) and not store.create(each, name.encode()) and _read(store, each) != name:
            raise CorruptData("the identity of a sink changed while it was read; try again", object=each)
    return name


def _read(store: Store, path: str) -> str | None:
    try:
        name = store.read(path).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    return name if len(name) == 16 and name.isalnum() else None
