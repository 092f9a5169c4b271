"""The views of a job over HTTP: JSON or Arrow for whoever has no Arrow Flight, and changes as Server-Sent Events.

`service.HttpService` listens, by the TLS of `encryption`; `app` says which path asks what, `asking` reads requests, `answering` writes
rows and errors, and `events` tells changes. Everything is read by a `flowstate_flight.client.FlightReader`, as its principal may see it.
"""

from flowstate_http.service import HttpService

__all__ = ["HttpService"]
