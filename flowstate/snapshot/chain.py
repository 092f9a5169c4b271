"""An append-only sequence of small entries, whose next number is claimed by create-if-absent.

What holds, whatever the others do: of all appends of one version at most one is told True, and an append that was told True is the newest
entry at some moment after it was called. So whoever reads the newest entry and then appends the next has compared and swapped. An append
that was told False is not the newest; it may be among the entries before it (6). So read again, and look whether the change is there.

Interleavings that `append` survives:

1. Two append version 5: the store creates one of them.
2. The store created ours and the answer was lost (a retry inside the client sees "it is there"): the object holds our token.
3. We read 17 and sleep; others append 18 to 40, retention deletes up to 32; we wake and create 18, which is absent. The list shows 40,
   so we lost, and 18 is a stray below the others: never the newest, deleted by the next retention.
4. As 3, while our list runs: an entry that was there all the time is listed. Retention keeps the newest `KEPT_ENTRIES`, so that
   as many would have to be appended and deleted within one request for the list to show none of them.
5. We append 18, right after 17, list, and sleep: we are told True late, but it was true when we listed.
6. We append 18; before we list, another reads it and appends 19, built on it. We are told False, as in 3: in both cases somebody else
   decides what comes next. (For a manifest that is a newer epoch, which has taken over ours.)
"""

from __future__ import annotations

import secrets
from typing import Any

from flowstate.errors import CorruptData, InternalError
from flowstate.snapshot.codec import decode, encode
from flowstate.snapshot.layout import entry as entry_name
from flowstate.snapshot.layout import version_of
from flowstate.store import Store

KEPT_ENTRIES = 8


class Chain:
    """The chain in the folder `path`. Versions begin at 1. Entries are plain JSON data. Safe for threads and processes."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        self.path = path

    def name(self, version: int) -> str:
        """Path of an entry."""
        return f"{self.path}/{entry_name(version)}"

    def versions(self) -> list[int]:
        """What there is, ascending; strays and gaps included."""
        found = (version_of(name) for name in self.store.list(self.path))
        return sorted(version for version in found if version is not None)

    def newest(self) -> int:
        """The newest version, without reading it; 0 for an empty chain."""
        return max(self.versions(), default=0)

    def read(self, version: int) -> dict[str, Any]:
        """One entry. FileNotFoundError when it is absent, CorruptData when it is damaged."""
        return decode(self.store.read(self.name(version)), self.name(version))[0]

    def latest(self, *, skip_damaged: bool = False) -> tuple[int, dict[str, Any]] | None:
        """The newest entry. A damaged one raises CorruptData, unless the caller says that an older one will do: then the newest that
        can be read. The next version is `newest() + 1` all the same."""
        before = -1
        while True:
            versions = self.versions()
            if not versions:
                return None
            for version in reversed(versions):
                try:
                    return version, self.read(version)
                except FileNotFoundError:
                    # Deleted by retention since we listed, so there are newer ones.
                    if version == before:
                        message = "an entry is listed and cannot be read; look at the store"
                        raise CorruptData(message, object=self.name(version)) from None
                    before = version
                    break
                except CorruptData:
                    if not skip_damaged:
                        raise
            else:
                raise CorruptData("every entry of a chain is damaged; restore it from a backup", object=self.path)

    def append(self, version: int, entry: dict[str, Any], *, token: str | None = None) -> bool:
        """Append `entry` as `version`, which must be one above the version that the caller built on. True if it is ours and the newest.

        When it raises Unavailable, it may have happened. A call that is repeated with the same `token` and entry is told so; without a
        token every call is a writer of its own. Same token and entry by two callers make both the winner.
        """
        name = self.name(version)
        if version < 1 or (version > 1 and not self.store.exists(self.name(version - 1))):
            if self.newest() < version:
                raise InternalError("a chain was appended to beyond its end", object=name)
            return False
        data = encode(entry, secrets.token_hex(12) if token is None else token)
        if not self.store.create(name, data):
            try:
                if self.store.read(name) != data:
                    return False
            except FileNotFoundError:  # deleted by retention, so there are newer ones
                return False
        return self.versions()[-1:] == [version]
