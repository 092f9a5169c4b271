"""Who is let in by the workers of a cluster, and how its own processes reach each other.

Made once per cluster, when the first job starts there: the supervisor keeps it, and every worker's host gets it with Dask's own messages.
`internal` is a token that only these processes know; it opens the exchange between workers, the supervisor's pings, and every read of
whoever starts or attaches to a job through Dask, which may run any code there in any case. It is in no snapshot, status or log.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from flowstate.view.tls import Tls
from flowstate_flight.auth import Admits
from flowstate_flight.credentials import Credentials


@dataclass(frozen=True)
class Security:
    """`access` and `tls` as `flowstate.start` takes them."""

    access: Admits = None
    tls: Tls | None = None
    internal: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def guarded(self) -> bool:
        return not (self.access is None or isinstance(self.access, str))

    @property
    def fingerprint(self) -> str:
        """The same for the same access and certificates, and nothing of them can be told by it."""
        if isinstance(self.access, str) or self.access is None:
            access = str(self.access)
        else:
            access = str(getattr(self.access, "fingerprint", type(self.access).__qualname__))
        parts = () if self.tls is None else (self.tls.certificate, self.tls.roots, self.tls.clients or b"")
        return hashlib.sha256(b"\n".join([access.encode(), *parts])).hexdigest()[:16]

    def connecting(self) -> dict[str, Any]:
        """Arguments of `Credentials`, for a process of the job itself."""
        token = {"token": self.internal} if self.guarded else {}
        return token if self.tls is None else token | self.tls.connecting()

    def credentials(self) -> Credentials:
        return Credentials(**self.connecting())
