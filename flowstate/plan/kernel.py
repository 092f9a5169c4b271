"""`kernel`: numba's njit as flowstate uses it: without the GIL, cached on disk.

numba notices an edit of a kernel's own file, but not of a callee in another file. So the cache lies in a folder named by a digest of
all kernel sources (files named in `SOURCES`) and of the versions that shape machine code. Importing this module imports numba, so
nothing that only builds flows may import it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np

_ROOT = Path(__file__).parent.parent
SOURCES = (
    "plan/kernel.py",
    "plan/memory.py",
    "plan/bits.py",
    "plan/encoding.py",
    "plan/event_times.py",
    "state/kernels",
    "source/kernels",
)


def _digest() -> str:
    digest = hashlib.sha256()
    for name in (numba.__version__, np.__version__, platform.python_version(), platform.machine()):
        digest.update(name.encode() + b"\0")
    for source in SOURCES:
        path = _ROOT / source
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            if file.exists():
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:24]


def cache_folder() -> Path:
    """Where compiled kernels are kept: under the user's cache folder, or one of this user's own under the temporary one if that
    cannot be written."""
    name = Path("flowstate") / f"kernels-{_digest()}"
    candidates = [Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / name]
    candidates.append(Path(tempfile.gettempdir()) / f"flowstate-{os.getuid()}" / name)
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Code is run from here: a folder that somebody else made is not used.
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
                return folder
        except (OSError, RuntimeError):
            continue
    return Path(tempfile.mkdtemp(prefix="flowstate-kernels-"))


_FOLDER = str(cache_folder())


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """One process of a machine at a time: the workers of a cluster start together, and what the first of them compiles (20 s of a
    core, once) the others read from disk. The lock of a process that dies is free."""
    with open(Path(_FOLDER) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first call, cached; it runs without the GIL."""
    return _compiled(function, inline=False)


def inlined(function: Callable[..., Any]) -> Any:
    """A small part of kernels, always inlined."""
    return _compiled(function, inline=True)


def part(function: Callable[..., Any]) -> Any:
    """A part of kernels that is called by them alone: compiled and cached with each of them, in less time than a kernel of its own."""
    return numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def _compiled(function: Callable[..., Any], *, inline: bool) -> Any:
    if inline:
        return numba.njit(nogil=True, inline="always", error_model="numpy")(function)
    # numba picks the cache folder when a function is decorated, from its global configuration.
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _FOLDER
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
