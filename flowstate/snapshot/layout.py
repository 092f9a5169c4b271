"""Names of everything under the snapshot URL (`flowstate.snapshot` shows them all)."""

from __future__ import annotations

import re
from hashlib import blake2b
from urllib.parse import quote

JOB = "job"
CUTS = "cuts"
SPLITS = "splits"
_OBJECT = re.compile(r"e(\d+)-(\d+)(?:-[\d-]+)?\.\w+$")


def entry(version: int) -> str:
    """Name of an entry of a chain."""
    return f"{version:012d}.json"


def copy_of_entry(version: int) -> str:
    """Name of the copy of an entry."""
    return f"{version:012d}.copy.json"


def version_of(name: str) -> int | None:
    """The version of an entry, or of its copy; None for another name."""
    stem, _, kind = name.partition(".")
    return int(stem) if kind in ("json", "copy.json") and len(stem) == 12 and stem.isdigit() else None


def partition(generation: int, number: int) -> str:
    """Folder of a partition."""
    return f"g{generation:04d}/p{number:04d}"


def manifests(generation: int, number: int) -> str:
    """Folder of a partition's manifest chain."""
    return f"{partition(generation, number)}/chain"


def segment(prefix: str, epoch: int, number: int, attempt: int = 0) -> str:
    """A segment of the save `number` of the incarnation `epoch` of the partition at `prefix`."""
    return f"{prefix}/e{epoch:06d}-{number:06d}{f'-{attempt}' if attempt else ''}.arrows"


def save_of(path: str) -> tuple[int, int] | None:
    """(epoch, number) of the save that wrote a segment or staged output; None for another name."""
    found = _OBJECT.match(path.rsplit("/", 1)[-1])
    return None if found is None else (int(found[1]), int(found[2]))


def quoted(name: str) -> str:
    """`name` as one readable part of a path; a long one is cut and told apart by a digest."""
    text = quote(name, safe=" =,@+")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) <= 180:
        return text
    return f"{text[:140]}-{blake2b(name.encode(), digest_size=16).hexdigest()}"
