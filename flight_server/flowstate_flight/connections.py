"""Ending connections that gRPC would wait for.

A Flight handler that waits in an idle do_exchange cannot be interrupted from the server's side, and `shutdown()` waits for it without
a bound. Closing the sockets under it is what ends it: gRPC sees the peer gone, cancels its calls and the handlers return.
"""

from __future__ import annotations

import os
import socket


def sever(port: int) -> int:
    """Shut down every accepted TCP connection of this process on local `port`; returns how many. Listening sockets, and this
    process's own clients of that port (whose local port is another), are left alone."""
    ended = 0
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            descriptors = [int(name) for name in os.listdir(folder) if name.isdigit()]
            break
        except OSError:
            continue
    else:
        return 0
    for descriptor in descriptors:
        try:
            number = os.dup(descriptor)
        except OSError:
            continue
        try:
            copy = socket.socket(fileno=number)
        except OSError:  # it is no socket
            os.close(number)
            continue
        with copy:
            try:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.getsockname()[1] == port:
                    copy.getpeername()  # raises for the listening socket
                    copy.shutdown(socket.SHUT_RDWR)
                    ended += 1
            except OSError:
                continue
    return ended
