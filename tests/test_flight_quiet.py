"""Nothing complains on stderr when streams end, in whatever order: Arrow does about every writer that is dropped unclosed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SERVED = """
import sys
sys.path.insert(0, {tests!r})
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS
from flowstate_flight import FlightService, connect

service = FlightService()
for each in partitions_of("billing", VIEWS, TABLES, 2):
    service.register(each)
service.set_directory(directory_of("billing", VIEWS, [service.location] * 2))
reader = connect(service.location, patience=0.5)
assert reader.lookup("subtotals", ("customer-3", "b")).num_rows
"""
ENDS = {
    "reader first": "reader.close(); service.close()",
    "service first": "service.close(); reader.close()",
    "service first, then asked": """
from flowstate.errors import Unavailable
service.close()
try:
    reader.lookup("subtotals", ("customer-3", "b"))
except Unavailable:
    pass
del reader
""",
    "a scan is left": "batches = reader.scan_reader('subtotals'); batches.read_next_batch(); service.close()",
    "only the service": "service.close()",
    "nothing": "",
}


@pytest.mark.parametrize("end", ENDS)
def test_streams_end_without_a_word(end: str) -> None:
    program = SERVED.format(tests=str(TESTS)) + ENDS[end]
    environment = {"PYTHONPATH": ":".join(str(TESTS.parent / each) for each in ("", "flight_server", "sql"))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    assert (done.returncode, done.stderr) == (0, "")
