"""Machine code of keyed state. `warm_up` makes it ready; it is compiled once per machine and version, then read from disk."""

from __future__ import annotations


def warm_up() -> None:
    """Compile, or load, every kernel, so that no batch waits for it."""
    from flowstate.plan.kernel import compiling
    from flowstate.state.warm import warm_up as run

    with compiling():
        run()
