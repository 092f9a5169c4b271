"""Real processes, tormented: what the simulation of `flowstate.testing` does to machines in memory, done to programs, sockets and disks.

`Victim`, `ProcessTree` and `Service` are processes that are killed, stopped (SIGSTOP) and started again; `DaskCluster` is a scheduler and
workers made of them. `PrivateNetwork` makes hosts of their own, whose link can be cut; `cut_connections` resets sockets; `SmallDisk` runs
full. Brokers and S3 servers to kill are in `flowstate.testing.servers`. Everything bears a mark and is gone afterwards; `sweep` removes
what a run left that was itself killed. Linux; what needs root says so with `missing()`.
"""

from flowstate.testing.tormentor.cluster import DaskCluster, free_port
from flowstate.testing.tormentor.disk import SmallDisk
from flowstate.testing.tormentor.marks import sweep
from flowstate.testing.tormentor.network import NetworkHost, PrivateNetwork
from flowstate.testing.tormentor.processes import ProcessTree, Service, Victim
from flowstate.testing.tormentor.sockets import cut_connections

__all__ = [
    "DaskCluster",
    "NetworkHost",
    "PrivateNetwork",
    "ProcessTree",
    "Service",
    "SmallDisk",
    "Victim",
    "cut_connections",
    "free_port",
    "sweep",
]
