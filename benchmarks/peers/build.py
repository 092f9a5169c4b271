"""The peers' programs: their packages come from Maven, their sources are compiled here, and both are kept in the cache folder."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

from flowstate.errors import Unavailable
from flowstate.testing.servers import cache_folder, fetching

SOURCES = Path(__file__).resolve().parent
PEERS = ("flink", "streams")
NEEDED = {
    "flink": ("Event.java", "Meter.java", "JacksonReader.java"),
    "streams": ("Event.java", "Meter.java"),
}


def missing() -> str | None:
    """Why no peer can be built here, or None."""
    lacking = [each for each in ("java", "javac", "mvn") if shutil.which(each) is None]
    if not lacking:
        return None
    return f"{', '.join(lacking)} not found: install Java 17 and Maven (Debian: apt-get install openjdk-17-jdk-headless maven)"


@functools.cache
def class_path(peer: str) -> str:
    """What `java -cp` needs for "flink" or "streams"; fetched and compiled when it is not there. `Unavailable` if that cannot be done."""
    if reason := missing():
        raise Unavailable(reason)
    pom = SOURCES / peer / "pom.xml"
    sources = [SOURCES / "common" / each for each in NEEDED[peer]] + sorted((SOURCES / peer).glob("*.java"))
    folder = cache_folder() / "peers" / peer
    jars, classes = folder / f"jars-{_digest([pom])}", folder / f"classes-{_digest([pom, *sources])}"
    with fetching(folder):
        if not (jars / "complete").exists():
            maven = ["mvn", "-q", "-B", f"-Dmaven.repo.local={cache_folder() / 'maven'}", "-f", str(pom)]
            _run([*maven, "dependency:copy-dependencies", f"-DoutputDirectory={jars}"])
            (jars / "complete").touch()
        if not (classes / "complete").exists():
            classes.mkdir(parents=True, exist_ok=True)
            _run(["javac", "-nowarn", "-d", str(classes), "-cp", f"{jars}/*", *map(str, sources)])
            (classes / "complete").touch()
    return f"{classes}:{jars}/*"


def version(peer: str) -> str:
    """Of the package that is measured, from the name of its jar."""
    jars = Path(class_path(peer).rsplit(":", 1)[1]).parent
    [found] = jars.glob({"flink": "flink-runtime-*.jar", "streams": "kafka-streams-*.jar"}[peer])
    return found.stem.rsplit("-", 1)[1]


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:12]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired as error:
        raise Unavailable("a peer could not be built in time: try again", command=command[0]) from error
    if done.returncode:
        raise Unavailable(f"a peer could not be built: {done.stdout[-2000:]}{done.stderr[-2000:]}", command=command[0])
