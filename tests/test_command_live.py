"""The commands that a person has before her for a while: a real job in worker processes, at a real terminal."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from asked_process import LOG, AskedProcess
from asking import ask, ask_all
from at_terminal import AtTerminal
from waiting import until

import flowstate as fs
from flowstate.command.place import Place
from flowstate.command.snapshots import checked, show
from flowstate.command.stopping import stop


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


def test_queries_at_the_prompt(job: AskedProcess, tmp_path: Path) -> None:
    with AtTerminal("sql", job.address, XDG_STATE_HOME=str(tmp_path)) as prompt:
        prompt.sees("job 'asked': views months", "asked>")
        at = prompt.presses("select code,\r")
        prompt.sees("->", after=at)
        at = prompt.presses("total from cod\t")
        prompt.sees("codes", after=at)
        at = prompt.presses(" where code = 8;\r")
        prompt.sees("1000000000.01", "1 row, ", "; live", after=at)
        at = prompt.presses("select totl from codes;\r")
        prompt.sees('       ^^^^\nReferenced column "totl" not found', after=at)
        at = prompt.presses("select 1 as ok; selec;\r")
        prompt.sees("ok\n 1\n", "syntax error", after=at)
        at = prompt.presses(".schema codes\r")
        prompt.sees("decimal128", after=at)
        at = prompt.presses(".shema\r")
        prompt.sees("did you mean '.schema'?", after=at)
        at = prompt.presses("select count(*) from range(1000000000000);\r")
        prompt.sees("range(1000000000000);", after=at)
        cancel_until_told(prompt, at)
        prompt.presses("\x04")
        assert prompt.ends() == 0
        assert prompt.in_order()
        assert "Traceback" not in prompt.text()
    history = tmp_path / "flowstate" / "sql_history"
    assert "total from codes where code = 8;" in history.read_text()
    assert history.stat().st_mode & 0o77 == 0


def cancel_until_told(prompt: AtTerminal, after: int) -> None:
    """Ctrl-C at the very prompt throws away a line; what is sent is sent when the query runs."""
    until(prompt.is_plain, 60)
    prompt.presses("\x03")
    prompt.sees("cancelled after", after=after)

    def asks_again() -> bool:
        """Until then the terminal takes Ctrl-D by itself, as an end of what was typed."""
        prompt.sees("cancelled after", after=after)
        return "asked>" in prompt.text(after).rpartition("cancelled after")[2]

    until(asks_again, 60)


def test_what_was_saved_is_shown_compared_and_queried(job: AskedProcess, tmp_path: Path) -> None:
    numbers = [json.loads(line)["snapshot"] for line in ask("snapshots", job.snapshots, "--json").out.splitlines()]
    first, last = str(numbers[0]), str(numbers[-1])
    shown, compared = ask_all(
        ["snapshots", job.snapshots, "show", last, "--json"],
        ["snapshots", job.snapshots, "diff", first, last, "--json"],
    )
    assert (shown.code, compared.code) == (0, 0), (shown, compared)
    parts = json.loads(shown.out)["partitions"]
    assert sum(each["rows"]["codes"] for each in parts) == len(LOG)
    difference = {each["view"]: each for each in json.loads(compared.out)["views"]}["codes"]
    assert difference["rows_after"] == len(LOG)
    assert difference["rows_before"] + difference["new"] - difference["gone"] == len(LOG)
    for action, given, message in (("diff", [1], "the numbers of two"), ("open", [1, 2], "one number at most")):
        with pytest.raises(fs.InvalidFlow, match=message):
            checked(Place(job.snapshots), action, given)
    with pytest.raises(fs.InvalidFlow, match="there is no such cut"):
        show(job.snapshots, 999_999, "text")
    with AtTerminal("snapshots", job.snapshots, "open", last, XDG_STATE_HOME=str(tmp_path)) as prompt:
        prompt.sees(f"at snapshot {last}", "asked>")
        at = prompt.presses("select sum(events)::int as events from codes;\r")
        prompt.sees(f" {len(LOG)}\n", "read from saved state", after=at)
        prompt.presses(".quit\r")
        assert prompt.ends() == 0


def test_at_last_the_job_is_stopped(job: AskedProcess) -> None:
    with AtTerminal("top", job.snapshots, "--every", "0.2") as top:
        top.sees("asked  running")
        (stopped,) = ask_all(["stop", job.address, "--json"])
        assert stopped.code == 0, stopped
        told = json.loads(stopped.out)
        assert (told["job"], told["state"]) == ("asked", "stopped")
        top.sees("asked  down", "no partition is live")
        top.presses("q")
        assert top.ends() == 0
    with pytest.raises(fs.Unavailable, match="nothing was stopped"):
        stop(Place(job.snapshots), "text")
