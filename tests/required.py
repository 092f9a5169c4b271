"""What a test needs of this machine: had, or the test is skipped; on CI it fails instead."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from flowstate.errors import Unavailable


def required(missing: Callable[[], str | None], fetch: Callable[[], object]) -> None:
    """`missing` tells why it cannot be had here, else `fetch` gets it; a fetch that fails is a failure everywhere."""
    reason = missing()
    if reason is None:
        try:
            fetch()
            return
        except Unavailable as error:
            pytest.fail(error.message)
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(reason)
    pytest.skip(reason)
