"""A disk that can be full: a small tmpfs of its own."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from flowstate.errors import Unavailable
from flowstate.testing.tormentor import marks

_BALLAST = ".ballast"
_PIECE = b"\0" * 65536


class SmallDisk(marks.Undone):
    """`size` bytes of memory mounted at `folder`. What is on it is gone with it."""

    def __init__(self, folder: Path, size: int) -> None:
        if reason := self.missing():
            raise Unavailable(reason)
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        marks.run("mount", "-t", "tmpfs", "-o", f"size={size}", marks.mark(), str(folder))
        super().__init__()

    @staticmethod
    def missing() -> str | None:
        """Why there can be none here, or None."""
        if shutil.which("mount") is None or os.geteuid() != 0 or not _may_mount():
            return "mounting a small disk needs root on Linux, with the right to mount (in a container: CAP_SYS_ADMIN)"
        return None

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, *, leave: int = 0) -> None:
        """Until `leave` bytes are free. With none, the next write of anybody fails with ENOSPC."""
        with (self.folder / _BALLAST).open("ab", buffering=0) as ballast:
            try:
                while (left := self.free - leave) > 0:
                    ballast.write(_PIECE[: min(len(_PIECE), left)])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def clear(self) -> None:
        """Give back what `fill` took."""
        (self.folder / _BALLAST).unlink(missing_ok=True)

    def undo(self) -> None:
        marks.run("umount", "--lazy", str(self.folder), check=False)


def _may_mount() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> 21 & 1)
    return False
