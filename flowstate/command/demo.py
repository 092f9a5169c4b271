"""``flowstate demo``: the billing job of the examples, live in this terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flowstate.errors import InvalidFlow

#: Where it is in an installed package, and in the sources.
PLACES = (Path(__file__).with_name("billing_demo.py"), Path(__file__).parents[2] / "examples" / "demo.py")


def demo(months: int | None, seed: int, data: Path | None) -> None:
    """In the place of this process, so that Ctrl-C reaches it and nothing else. Raises InvalidFlow where it is not installed."""
    place = next((each for each in PLACES if each.is_file()), None)
    if place is None:
        raise InvalidFlow(
            "the demo is not installed here; it is examples/demo.py of the sources", looked=[*map(str, PLACES)]
        )
    words = [sys.executable, str(place), "--seed", str(seed)]
    words += [] if months is None else ["--months", str(months)]
    words += [] if data is None else ["--data", str(data)]
    os.execv(sys.executable, words)
