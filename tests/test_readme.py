"""The README does what it says: its programs run, and print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import flowstate as fs

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
PROGRAM, ASKING, ANYWHERE, DOWN, SINKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(PRINTED,) = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(program: str, folder: Path) -> str:
    (folder / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_job_runs_and_is_asked_from_another_process(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == PRINTED
    with fs.open_snapshot(tmp_path / "snapshots") as saved:
        assert saved.sql("select count(*) from monthly_subtotals").fetchall() == [(3,)]
    assert sorted(path.parent.name for path in tmp_path.glob("invoices/*/*.parquet"))[0].startswith("month=2026-01-01")

    assert run("import flowstate as fs\n" + DOWN, tmp_path).split() == ["2", "months", "False"]
    assert run(ANYWHERE, tmp_path).splitlines() == ["(Decimal('12.75'),)", "[('Anna A.', 2)]"]
    flow = PROGRAM[: PROGRAM.index("Path(")]
    run(flow + SINKS, tmp_path)  # building a flow touches nothing

    serving = PROGRAM.replace("    print(*job", "    print(job.address, flush=True), input()\n    print(*job")
    (tmp_path / "serving.py").write_text(serving)
    job = subprocess.Popen(
        [sys.executable, "serving.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with job:
        try:
            assert job.stdin is not None
            assert job.stdout is not None
            address = job.stdout.readline().strip()
            lines = run(ASKING.replace("grpc://127.0.0.1:4711", address), tmp_path).splitlines()
            assert sum(int(line.removesuffix(" rows")) for line in lines[:-2]) == 3
            assert lines[-2:] == ["2 months", "[('anna', Decimal('12.75')), ('ben', Decimal('1.00'))]"]
            job.stdin.write("\n")
            job.stdin.close()
            assert job.wait(60) == 0
        finally:
            job.kill()
