"""A process that serves a job by HTTP until its standard input ends; its arguments are addresses of workers. It prints its port."""

from __future__ import annotations

import sys

from flowstate_flight.client import FlightReader
from flowstate_http import HttpService


def main() -> None:
    with FlightReader(sys.argv[1:]) as reader, HttpService(reader) as service:
        print(service.port, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
