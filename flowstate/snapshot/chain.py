"""An append-only sequence of small entries, whose next number is claimed by create-if-absent. Each entry has a copy.

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

Beside ``000000000018.json`` lies ``000000000018.copy.json`` with the same bytes, written after the entry was created and before its
appender is told True. So an entry that anybody acts upon is twice in the store, and one object that is damaged or lost loses nothing: the
newest version is the greatest of entries and copies, and what can be read of the two is the entry. (An entry that was lost, not only
damaged, would else make the one before it the newest, and a sink would write what it has written.)

7. We create 18 and die before its copy is there: nobody was told True. If 18 is lost now, it never was; if it is only damaged, it is an
   error with a name, since its writer may not be dead. Who reads 18, and appends 19, has not acted before 19 has its own copy. Who reads
   it and need not append, since what it wants is there, makes the copy first (`settle`).
8. We lose the compare-and-swap: our bytes are in no entry, so there is no copy. We win and sleep before the copy, others go on and
   retention deletes 18: our copy is a stray below the others, as in 3.
9. Entry 18 is lost and its copy is there: 18 is the newest all the same, and who appends 18 is told False before it creates anything.
   Who looked before the copy was there, and creates a second 18 after the first was lost, finds another's copy when it comes to
   write its own, and is told False. So where an entry and its copy are both whole and differ, **the copy decides**.
"""

from __future__ import annotations

import secrets
from typing import Any

from flowstate.errors import CorruptData, InternalError
from flowstate.snapshot.codec import decode, encode
from flowstate.snapshot.layout import copy_of_entry, version_of
from flowstate.snapshot.layout import entry as entry_name
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

    def copy_name(self, version: int) -> str:
        """Path of the copy of an entry."""
        return f"{self.path}/{copy_of_entry(version)}"

    def versions(self) -> list[int]:
        """What there is, as an entry or as a copy, ascending; strays and gaps included."""
        found = (version_of(name) for name in self.store.list(self.path))
        return sorted({version for version in found if version is not None})

    def newest(self) -> int:
        """The newest version, without reading it; 0 for an empty chain."""
        return max(self.versions(), default=0)

    def read(self, version: int) -> dict[str, Any]:
        """One entry. FileNotFoundError when it is absent, CorruptData when neither it nor its copy is whole."""
        damage: CorruptData | None = None
        for name in (self.copy_name(version), self.name(version)):
            try:
                return decode(self.store.read(name), name)[0]
            except FileNotFoundError:
                continue
            except CorruptData as error:
                damage = error
        if damage is not None:
            raise damage
        raise FileNotFoundError(self.name(version))

    def damage(self, version: int) -> list[str]:
        """What is wrong with an entry that is there and that retention keeps, a line for each object. A copy that is not there is no
        damage: its writer may have died before it."""
        found = []
        for name in (self.name(version), self.copy_name(version)):
            try:
                decode(self.store.read(name), name)
            except FileNotFoundError:
                if name == self.name(version) and self.store.exists(self.copy_name(version)):
                    found.append(f"an object is gone, its copy is used  [object={name!r}]")
            except CorruptData as error:
                found.append(str(error))
        return found

    def latest(self, *, skip_damaged: bool = False) -> tuple[int, dict[str, Any]] | None:
        """The newest entry. CorruptData if neither it nor its copy can be read, unless the caller says that an older one will do: then
        the newest that can be read. The next version is `newest() + 1` all the same."""
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

    def settle(self, version: int, entry: dict[str, Any]) -> bool:
        """Make sure that `entry`, which was read as `version` and which somebody is about to act upon without appending, has its copy (7).
        False if it is not the entry any more: read again."""
        try:
            if not self.store.exists(self.copy_name(version)):
                data = self.store.read(self.name(version))
                decode(data, self.name(version))
                self._copy(version, data)
            return self.read(version) == entry
        except FileNotFoundError:
            return False

    def append(self, version: int, entry: dict[str, Any], *, token: str | None = None) -> bool:
        """Append `entry` as `version`, which must be one above the version that the caller built on. True if it is ours and the newest.

        When it raises Unavailable, it may have happened. A call that is repeated with the same `token` and entry is told so; without a
        token every call is a writer of its own. Same token and entry by two callers make both the winner.
        """
        if version < 1:
            raise InternalError("versions of a chain begin at 1", object=self.path, version=version)
        data = encode(entry, secrets.token_hex(12) if token is None else token)
        newest = self.newest()
        if newest < version - 1:
            message = "the entry that the next one builds on is gone; restore the snapshots folder from a backup"
            raise CorruptData(message, object=self.name(version - 1), newest=newest)
        if newest > version:
            return False
        created = newest < version and self.store.create(self.name(version), data)
        if not (created or self._ours(version, data)) or self.newest() != version:
            return False
        return self._copy(version, data)

    def forget(self, version: int) -> None:
        """Delete an entry and its copy."""
        self.store.delete(self.name(version))
        self.store.delete(self.copy_name(version))

    def _ours(self, version: int, data: bytes) -> bool:
        """Whether the entry is what we wrote; its copy says so too, where the entry has been lost since."""
        for name in (self.name(version), self.copy_name(version)):
            try:
                if self.store.read(name) == data:
                    return True
            except FileNotFoundError:
                continue
        return False

    def _copy(self, version: int, data: bytes) -> bool:
        """Write the copy. False if there is another's (9)."""
        name = self.copy_name(version)
        if self.store.create(name, data):
            return True
        try:
            there = self.store.read(name)
            if there != data:
                decode(there, name)
            return there == data
        except FileNotFoundError:  # deleted by retention, so there are newer ones
            return False
        except CorruptData:
            return True  # damaged since: the entry itself is whole
