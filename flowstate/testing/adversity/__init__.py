"""Simulation of a whole job on the real machines, under everything that may go wrong. One seed replays everything.

`simulate` and `explore` run the real `Partition`s with real contents, the real `Coordinator`, `Committing` and `Saver`, real chains,
records and sinks; only threads, sockets, sources and time are simulated (`world`). The checks compare with a reference that knows only
the log and the recorded floors. `answers` does the same for who may call itself live: the real watchdog and lease. The rules and
invariants are those of docs/protocol.md. ``python -m flowstate.testing.adversity --seeds 10000`` looks for long.
"""

from flowstate.testing.adversity.driver import explore, simulate
from flowstate.testing.adversity.fault import Fault

__all__ = ["Fault", "explore", "simulate"]
