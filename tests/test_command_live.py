"""The commands that a person has before her for a while: a real job in worker processes, at a real terminal."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from asked_process import LOG, AskedProcess
from asking import ask_all
from at_terminal import AtTerminal

import flowstate as fs


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedProcess]:
    job = AskedProcess(tmp_path_factory.mktemp("live"))
    yield job
    job.kill()


def test_top_is_seen_at_a_terminal_and_gives_it_back(job: AskedProcess) -> None:
    with (
        AtTerminal("top", job.address, "--every", "0.2") as wide,
        AtTerminal("top", job.snapshots, columns=36) as small,
    ):
        wide.sees("asked  running", "2 workers", "partition", "rows/s", "127.0.0.1:", "log.jsonl", "q quits")
        small.sees("asked  running", "rows/s")
        assert max(map(len, small.text().splitlines())) <= 36
        assert "127.0.0.1:" not in small.text(), "there is no room for it"
        wide.sees(f"{len(LOG) + 4} keys")
        wide.presses("q")
        small.presses("\x03")
        assert wide.ends() == 0
        assert small.ends() == -signal.SIGINT
        assert wide.in_order()
        assert small.in_order()
        assert "Traceback" not in wide.text() + small.text()


def test_top_tells_by_a_gateway_and_by_the_snapshots_what_there_is(job: AskedProcess) -> None:
    with fs.gateway(snapshots=job.snapshots) as gateway:
        text, told = ask_all(["top", gateway.address, "--once"], ["top", job.snapshots, "--once", "--json"])
    assert (told.code, text.code) == (0, 0), (told, text)
    for each in [json.loads(told.out)]:
        assert (each["job"], each["state"], each["workers"], each["troubles"]) == ("asked", "running", 2, [])
        assert each["rows"] == 2 * len(LOG)
        assert each["keys"] == sum(part["keys"] for part in each["partitions"]) == len(LOG) + 4
        assert each["rows_per_second"] == 0
        assert each["snapshot"] > 0
        assert each["watermark_delay"] > 0
        assert {split["label"] for split in each["splits"]} == {str(job.folder / "log.jsonl")}
    assert "\x1b" not in text.out
    assert text.out.startswith("asked  running  run 1, 2 partitions, 2 workers\n")
