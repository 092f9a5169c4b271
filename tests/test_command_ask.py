"""The commands that ask: a real job in worker processes, asked by real processes, one of them at a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from asked_process import LOG, AskedProcess
from asking import ask, ask_all, command, environment
from waiting import until

import flowstate as fs


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedProcess]:
    job = AskedProcess(tmp_path_factory.mktemp("asked"))
    yield job
    job.kill()


def test_saying_how_it_is_called_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from flowstate.command.main import app\n"
        "try: app(['get', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pyarrow', 'duckdb', 'dask', 'distributed', 'numpy', 'numba'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert "grep" in said.stdout
    assert said.stdout.splitlines()[-1] == "[]"


def test_get_gives_the_rows_of_a_key_in_three_forms(job: AskedProcess) -> None:
    text, lines, table = ask_all(
        ["get", job.address.removeprefix("grpc://"), "months", "00123", "2026-01-01"],
        ["get", job.address, "months", "00123", "--json"],
        ["get", job.snapshots, "months", "00123", "2026-01-01T01:00+01:00", "--csv"],
    )
    assert [(each.code, each.errors) for each in (text, lines, table)] == [(0, "")] * 3
    head, row = text.out.splitlines()
    assert head.split() == ["customer", "month", "month_end", "total", "events"]
    assert row.split()[0] == "00123"
    assert row.split()[3:] == ["12.50", "1"]
    assert head.index("total") + len("total") == row.index("12.50") + len("12.50")
    first, second = sorted(lines.out.splitlines())
    assert first.startswith(
        '{"customer":"00123","month":"2026-01-01T00:00:00.000Z","month_end":"2026-02-01T00:00:00.000Z"'
    )
    assert first.endswith(',"total":12.50,"events":1}')
    assert second.endswith(',"total":0.05,"events":1}')
    (found,) = csv.DictReader(io.StringIO(table.out))
    assert (found["customer"], found["total"]) == ("00123", "12.50")


def test_what_is_not_there_and_what_is_wrong(job: AskedProcess) -> None:
    outcomes(
        (["get", job.address, "months", "0123"], 1, "view 'months' has no key 0123"),
        (["get", job.address, "codes", "--", "-7"], 0, ""),
        (["get", job.address, "codes", "seven"], 2, "'seven' is no value for 'code', a column of type int64"),
        (["get", job.address, "mnths", "a"], 2, "did you mean 'months'?"),
        (["get", str(job.folder / "nowhere"), "codes", "7"], 2, "no job"),
    )


def test_freshness_that_cannot_be_had_is_refused(job: AskedProcess) -> None:
    (split,) = {each["split"] for each in json.loads(ask("status", job.address, "--json").out)["positions"]}
    outcomes(
        (["get", job.address, "codes", "7", "--at-least", f"{split}=1000000", "--wait", "0.2"], 1, "missed_by="),
        (["get", job.address, "codes", "7", "--at-least", f"{split}=1", "--max-age", "0", "--json"], 0, ""),
        (["sql", job.address, "select 1 as one from codes", "--consistent", "--json"], 0, ""),
        (["get", "127.0.0.1:1", "codes", "7"], 1, "no answer"),
    )


def outcomes(*expected: tuple[list[str], int, str]) -> None:
    """Each command with its exit code, and what it says, in one line."""
    for said, (words, code, sentence) in zip(ask_all(*(each[0] for each in expected)), expected, strict=True):
        assert said.code == code, (words, said)
        assert sentence in said.errors
        assert said.errors.count("\n") == (1 if sentence else 0)
        assert bool(said.out) == (code == 0)


def test_sql_reads_live_and_saved_rows(job: AskedProcess) -> None:
    query = "select customer, sum(total) as total from months group by all order by total desc"
    number = json.loads(ask("snapshots", job.snapshots, "list", "--json").out.splitlines()[-1])["snapshot"]
    live, form, saved, wrong = ask_all(
        ["sql", job.address, query, "--json"],
        ["sql", job.address, query],
        ["sql", job.snapshots, f"select sum(total) as total from months at (snapshot => {number})", "--csv"],
        ["sql", job.address, "selec"],
    )
    assert (live.code, live.errors) == (0, "")
    assert live.out.splitlines()[:2] == [
        '{"customer":"123","total":1000000000.01}',
        '{"customer":"00123","total":12.55}',
    ]
    assert form.out.splitlines()[0].split() == ["customer", "total"]
    assert '"\\u001b[31mred"' in form.out, "what would colour a terminal is escaped"
    assert "\x1b" not in form.out
    assert saved.code == 0, saved
    assert saved.out.splitlines() == ['"total"', "1000000013.56"]
    assert "read from saved state" in saved.errors
    assert (wrong.code, wrong.out) == (2, "")
    assert "syntax error" in wrong.errors


def test_views_status_and_snapshots(job: AskedProcess) -> None:
    text, lines, status, listed, refused = ask_all(
        ["views", job.address],
        ["views", job.address, "--json"],
        ["status", job.snapshots],
        ["snapshots", job.snapshots],
        ["snapshots", job.address, "list"],
    )
    assert [text.code, lines.code, status.code, listed.code, refused.code] == [0, 0, 0, 0, 2]
    assert ["months", "customer", "string", "key"] in [each.split() for each in text.out.splitlines()]
    assert any(each.split()[:2] == ["months", "month"] and "key, window" in each for each in text.out.splitlines())
    assert json.loads(lines.out.splitlines()[0])["routing_keys"] == ["customer"]
    head, second = status.out.splitlines()[:2]
    assert head.startswith("job 'asked', views months")
    assert second == "every partition is live, and none is late"
    assert {"partitions", "positions"} <= set(status.out.splitlines())
    assert listed.out.splitlines()[0].split() == ["snapshot", "at", "(age)", "partitions"]
    assert len(listed.out.splitlines()) > 1
    assert "folder or URL" in refused.errors


def test_tail_tells_rows_and_then_changes_until_the_pipe_is_closed(job: AskedProcess) -> None:
    tail = subprocess.Popen(
        command("tail", job.address, "codes", "7", "--json"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    with tail.stdout, tail.stderr:
        assert json.loads(tail.stdout.readline())["row"]["events"] == 1
        assert json.loads(tail.stdout.readline())["change"] == "position"
        job.append('{"customer": "late comer", "code": 7, "amount": "0.50", "at": "2026-02-02T10:00:00Z"}')
        told = json.loads(tail.stdout.readline(), parse_float=str)
        assert told == {"change": "rows", "row": {"code": 7, "total": "13.00", "events": 2}}
        position = json.loads(tail.stdout.readline())
        tail.stdout.close()  # nothing changes any more: it finds out by itself
        assert tail.wait(20) == 0
        assert tail.stderr.read() == ""
    resumed = subprocess.Popen(
        command("tail", job.address, "codes", "7", "--resume", position["resume"], "--json"),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert resumed.stdout is not None
    with resumed.stdout:
        assert json.loads(resumed.stdout.readline())["change"] == "position", "no row is told again"
    assert resumed.wait(20) == 0


def test_rows_for_a_reader_who_has_seen_enough(job: AskedProcess) -> None:
    query = "select a.code, range from codes a, range(200000)"
    shell = " ".join(["set -o pipefail;", *(f"'{each}'" for each in command("sql", job.address, query)), "| head -1"])
    said = subprocess.run(["bash", "-c", shell], env=environment(), capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.split() == ["code", "range"]


def test_rows_that_cannot_be_written_are_no_success(job: AskedProcess) -> None:
    words = " ".join(f"'{each}'" for each in command("get", job.address, "codes", "7"))
    shell = f"{words} > /dev/full; echo $?; {words} >&-; echo $?; {words} 2>&-; echo $?; echo 'select 1 as one' | {words_of_sql(job)}"
    said = subprocess.run(["bash", "-c", shell], env=environment(), capture_output=True, text=True, timeout=60)
    first, second, head, row, third, one = said.stdout.splitlines()
    assert (first, second, third) == ("1", "1", "0")
    assert head.split() == ["code", "total", "events"]
    assert row.split()[0] == "7"
    assert one == '{"one":1}'
    assert "No space left" in said.stderr
    assert "standard output is closed" in said.stderr


def words_of_sql(job: AskedProcess) -> str:
    return " ".join(f"'{each}'" for each in command("sql", job.address, "-", "--json"))


def test_a_person_at_a_terminal_tails_and_presses_control_c(job: AskedProcess) -> None:
    child, terminal = pty.fork()
    if child == 0:
        words = command("tail", job.address, "months", "123")
        os.execve(words[0], words, environment())
    shown = b""

    def sees(text: bytes) -> bool:
        nonlocal shown
        if text not in shown:
            shown += os.read(terminal, 4096)
        return text in shown

    try:
        until(lambda: sees(b"1000000000.01"), 60, says=lambda: shown)
        os.write(terminal, b"\x03")
        _, status = until(lambda: waited if (waited := os.waitpid(child, os.WNOHANG))[0] else None, 20)
    finally:
        os.close(terminal)
    assert os.WIFSIGNALED(status)  # which a shell calls 130
    assert os.WTERMSIG(status) == signal.SIGINT
    head, row = shown.decode().splitlines()[:2]
    assert head.split() == ["change", "customer", "month", "month_end", "total", "events"]
    assert row.split()[:2] == ["row", "123"]
    assert b"Traceback" not in shown


def test_at_last_while_the_job_is_down_saved_state_answers_and_says_so(job: AskedProcess) -> None:
    job.kill()
    killed = time.time()
    with fs.gateway(snapshots=job.snapshots) as gateway:
        said, strict, status, through = ask_all(
            ["get", job.snapshots, "codes", "8", "--json"],
            ["get", job.snapshots, "codes", "8", "--max-age", "0"],
            ["status", job.snapshots],
            ["status", gateway.address, "--json"],
        )
    assert said.code == 0
    assert json.loads(said.out, parse_float=str) == {"code": 8, "total": "1000000000.01", "events": 1}
    assert "read from saved state, " in said.errors
    age = float(said.errors.split("read from saved state, ")[1].split()[0])
    assert 0 <= age < time.time() - killed + 60
    assert (strict.code, strict.out) == (1, "")
    assert "missed_by=" in strict.errors
    assert status.code == 0
    lines = status.out.splitlines()
    assert lines[1].startswith("! the job is down: no partition is live; start it again")
    assert lines[2].startswith("! partition 0 is away; what it saved ")
    assert "Connection refused" in lines[2]
    assert through.code == 0
    known = json.loads(through.out)
    assert [each["state"] for each in known["partitions"]] == ["saved", "saved"]
    assert len(known["positions"]) == 2
    assert all(each["offset"] >= sum(len(line) + 1 for line in LOG) for each in known["positions"])
    assert known["troubles"][1].startswith("partition 0 is away; what it saved ")
