"""Hosts of their own on one machine: network namespaces, joined by a bridge that has no way to the outside.

    hub (bridge, .1) --- veth --- host (.2), host (.3), ...

What runs in one namespace has its own loopback and reaches the others only over its link, which can be cut and joined again. Files are
shared, as over a network file system.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Sequence

from flowstate.errors import Unavailable
from flowstate.testing.tormentor import marks

_NETWORK = 0x40000000  # CLONE_NEWNET


class NetworkHost:
    """One namespace. `address` is its IPv4 address on the bridge."""

    def __init__(self, network: PrivateNetwork, name: str, number: int) -> None:
        self.name, self.namespace = name, f"{network.name}-{name}"
        self.address = f"{network.subnet}.{number}"
        self._network, self._port = network, f"port{number}"

    def command(self, *command: str) -> list[str]:
        """`command`, to be run in here."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *command]

    def enter(self) -> None:
        """Move this thread in here, with those that it starts from now on. Before anything else: threads that there are stay outside."""
        with open(f"/run/netns/{self.namespace}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NETWORK):
                raise OSError(ctypes.get_errno(), "this process may not enter the namespace", self.namespace)

    def cut(self) -> None:
        """Pull the cable at the bridge: packets of both directions are lost, no connection is told."""
        self._network.of_hub("link", "set", self._port, "down")

    def join(self) -> None:
        """Plug it in again. Connections that have not given up by then go on."""
        self._network.of_hub("link", "set", self._port, "up")

    def __repr__(self) -> str:
        return f"<host {self.name} at {self.address}>"


class PrivateNetwork(marks.Undone):
    """A bridge in a namespace of its own (`hub`, itself a host), and more hosts with `host`."""

    def __init__(self, subnet: str = "10.213.77") -> None:
        if reason := self.missing():
            raise Unavailable(reason)
        self.name, self.subnet = marks.mark(), subnet
        self.hosts: list[NetworkHost] = []
        super().__init__()
        try:
            self.hub = self._add("hub", 1)
            self.of_hub("link", "add", "bridge", "type", "bridge")
            self.of_hub("address", "add", f"{self.hub.address}/24", "dev", "bridge")
            self.of_hub("link", "set", "bridge", "up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def missing() -> str | None:
        """Why there can be none here, or None."""
        if sys.platform != "linux":
            return "network namespaces need Linux"
        for program in ("ip", "nsenter"):
            if shutil.which(program) is None:
                return f"{program} is not installed (Debian: apt-get install iproute2 util-linux)"
        if os.geteuid() != 0:
            return "network namespaces need root"
        probe = marks.mark()
        try:
            marks.run("ip", "netns", "add", probe)
            marks.run("ip", "-n", probe, "link", "add", "left0", "type", "veth", "peer", "name", "right0")
        except OSError as error:
            return f"network namespaces are not allowed here: {error}"
        finally:
            marks.run("ip", "netns", "delete", probe, check=False)
        return None

    def host(self, name: str) -> NetworkHost:
        """Another host on the bridge. Its link is up."""
        number = len(self.hosts) + 1
        host = self._add(name, number)
        self.of_hub("link", "add", host._port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        self.of_hub("link", "set", host._port, "master", "bridge", "up")
        marks.run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        marks.run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        return host

    def _add(self, name: str, number: int) -> NetworkHost:
        host = NetworkHost(self, name, number)
        self.hosts.append(host)
        marks.run("ip", "netns", "add", host.namespace)
        marks.run("ip", "-n", host.namespace, "link", "set", "lo", "up")
        return host

    def of_hub(self, *command: str) -> str:
        """An `ip` command in the hub."""
        return marks.run("ip", "-n", self.hub.namespace if hasattr(self, "hub") else self.hosts[0].namespace, *command)

    def addresses(self) -> Sequence[str]:
        return [each.address for each in self.hosts]

    def undo(self) -> None:
        for each in reversed(self.hosts):
            marks.run("ip", "netns", "delete", each.namespace, check=False)
