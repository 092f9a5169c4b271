"""Connections of this machine that end in the middle of a word."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from flowstate.errors import Unavailable
from flowstate.testing.tormentor.marks import run


def missing() -> str | None:
    """Why connections cannot be cut here, or None. A kernel without INET_DIAG_DESTROY only shows when one is to be cut."""
    import os

    if shutil.which("ss") is None:
        return "ss is not installed (Debian: apt-get install iproute2)"
    return None if os.geteuid() == 0 else "cutting connections of other processes needs root"


def connections(port: int, within: Sequence[str] = ()) -> int:
    """Established connections from or to `port`; both ends of one that is on this machine count. `within` precedes the command, to ask
    in another network namespace (`NetworkHost.command`)."""
    return len(run(*within, "ss", "-Htn", *_of(port)).splitlines())


def cut_connections(port: int, within: Sequence[str] = ()) -> int:
    """Reset all established connections from or to `port`: both ends get an error, listeners stay. How many were reset (a connection
    within this machine may count for each of its ends)."""
    if reason := missing():
        raise Unavailable(reason)
    there = connections(port, within)
    cut = len(run(*within, "ss", "-K", "-Htn", *_of(port)).splitlines())  # it names those that it has reset
    if there and not cut and connections(port, within):
        raise Unavailable("the kernel cuts no connections; it needs CONFIG_INET_DIAG_DESTROY", port=port)
    return cut


def _of(port: int) -> tuple[str, ...]:
    return ("state", "established", f"( sport = :{port} or dport = :{port} )")
