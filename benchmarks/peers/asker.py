"""Keeps so many lookups of single keys in flight at a job, on the other core, and counts the answers.

    python -m benchmarks.peers.asker LOOKUPS

A line on its standard input names the address of a job and a view: it asks from then on, until an empty line ends that, and writes how
many answers came. Four exchanges, each with its part of the questions under way, so that a question follows each answer at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import pyarrow as pa
from pyarrow import flight

from flowstate_flight import connect

STREAMS, NAMES = 4, 1000


class Stream:
    """Asks until `stopped`; then reads what is still under way."""

    def __init__(
        self, client: flight.FlightClient, job: str, view: str, partition: int, epoch: int, flying: int
    ) -> None:
        command = json.dumps({"v": 1, "kind": "lookup", "job": job, "view": view}).encode()
        self._to, self._back = client.do_exchange(flight.FlightDescriptor.for_command(command))
        self._keys = [pa.record_batch({"customer": [f"customer-{each * 97 % 100_000:06d}"]}) for each in range(NAMES)]
        self._to.begin(self._keys[0].schema)
        self._said = f'{{"partition": {partition}, "epoch": {epoch}, "id": '
        self.answered, self._asked, self._received, self._flying, self.stopped = 0, 0, 0, flying, False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for _ in range(self._flying):
            self._ask()
        while self._received < self._asked:
            reply = self._back.read_chunk()
            self._received += 1
            self.answered += b'"answer"' in reply.app_metadata.to_pybytes()[:40]  # else the partition is not there yet
            if not self.stopped:
                self._ask()
        self._to.done_writing()
        self._to.close()

    def _ask(self) -> None:
        self._asked += 1
        self._to.write_with_metadata(self._keys[self._asked % NAMES], f"{self._said}{self._asked}}}".encode())


def ask(address: str, view: str, flying: int) -> int:
    with connect(address) as reader:
        while not (place := reader.directory().partitions[0]).location:
            reader.refresh()
        directory = reader.directory()
        client = flight.connect(place.location)
        streams = [
            Stream(client, directory.job, view, place.partition, place.epoch, flying // STREAMS) for _ in range(STREAMS)
        ]
        sys.stdin.readline()
        for each in streams:
            each.stopped = True
        for each in streams:
            each.thread.join(30)
        client.close()
    return sum(each.answered for each in streams)


def main() -> None:
    os.sched_setaffinity(0, {1})
    while line := sys.stdin.readline():
        address, view = line.split()
        print(ask(address, view, int(sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
