"""The Arrow Flight SQL JDBC driver, and the program of the tests that uses it (`jdbc/Asker.java`): fetched by Maven, run by Java."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from required import required

from flowstate.errors import Unavailable
from flowstate.testing.servers import cache_folder, fetching

FOLDER = Path(__file__).resolve().with_name("jdbc")
VERSION = "18.3.0"


def missing() -> str | None:
    """Why the driver cannot be used here, or None."""
    lacking = [each for each in ("java", *(() if _complete().exists() else ("mvn",))) if shutil.which(each) is None]
    if not lacking:
        return None
    return f"{' and '.join(lacking)} not found: install JDK 17 and Maven (Debian: apt-get install openjdk-17-jdk-headless maven)"


def fetch() -> Path:
    """The folder of the driver's jar; fetched when it is not there. `Unavailable` if that cannot be done."""
    folder = _complete().parent
    with fetching(folder):
        if not _complete().exists():
            command = ["mvn", "-q", "-B", "-f", str(FOLDER / "pom.xml"), "dependency:copy-dependencies"]
            done = subprocess.run(
                [*command, f"-DoutputDirectory={folder}"], capture_output=True, text=True, timeout=600
            )
            if done.returncode:
                raise Unavailable(f"maven could not fetch the driver: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            _complete().touch()
    return folder


def _complete() -> Path:
    return cache_folder() / "jdbc" / VERSION / "complete"


def ask(address: str, timeout: float = 120.0, zone: str = "UTC") -> Mapping[str, Any]:
    """Everything that the program finds out at a gateway, by the names of its questions."""
    required(missing, fetch)
    command = [
        "java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Duser.timezone={zone}",
        "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", f"{fetch()}/*", str(FOLDER / "Asker.java"),
        address.removeprefix("grpc://"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        name, tab, value = line.partition("\t")
        if tab:
            found[name] = json.loads(value)
    return found
