"""What flowstate doctor finds, with nothing wrong and with everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asking import Said, ask_all
from kafka_broker import KafkaBroker
from test_command_explain import FLOW

import flowstate as fs
from flowstate.command import checks

GOOD = FLOW.replace("fs.scan_kafka(", "fs.scan_files(").replace(
    '"topic", bootstrap="nowhere.invalid:1"', 'HERE + "/log/*.jsonl"'
)


def found(said: Said) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in said.out.splitlines()]
    return {each["check"]: (each["state"], each["found"]) for each in lines}


def test_a_machine_and_a_flow_without_fault_and_with_many(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "0.jsonl").write_text('{"k": "a", "n": 1, "at": "2026-01-01T00:00:00Z"}\n')
    (tmp_path / "good.py").write_text(
        f"HERE = {str(tmp_path)!r}\n{GOOD}".replace('"out/"', f"{str(tmp_path / 'out')!r}")
    )
    (tmp_path / "bad.py").write_text(FLOW.replace("nowhere.invalid:1", "127.0.0.1:1"))
    (tmp_path / "file").write_text("no folder")
    good, bad = ask_all(
        ["doctor", f"{tmp_path}/good.py:flow", "--snapshots", str(tmp_path / "snapshots"), "--json"],
        ["doctor", f"{tmp_path}/bad.py:flow", "127.0.0.1:1", "--snapshots", str(tmp_path / "file" / "below"), "--json"],
    )
    assert (good.code, good.errors) == (0, ""), good
    told = found(good)
    assert {"flow", "packages", "memory", "files", "kernels", "ports", "clock", "snapshots", "source", "sink"} == set(
        told
    )
    assert told["source"][0] == "ok"
    assert told["source"][1].endswith("has 1 split")
    assert "no job has been here yet" in told["snapshots"][1]
    assert (bad.code, bad.errors) == (1, ""), bad
    told = found(bad)
    assert {name for name, (state, _) in told.items() if state == "wrong"} == {"snapshots", "source", "job"}
    assert "127.0.0.1:1" in told["source"][1]
    assert "no answer" in told["job"][1]


def test_snapshots_of_another_flow_are_told_with_what_differs(tmp_path: Path) -> None:
    from test_command_explain import SCHEMA

    from flowstate.plan.compile import compile as compile_plan
    from flowstate.snapshot.job_record import JobChain
    from flowstate.store import Store

    rows = fs.scan_files(f"{tmp_path}/*.jsonl", schema=SCHEMA)
    before, after = (
        compile_plan([rows.group_by("k").agg(n=each).view("totals").node]) for each in (fs.len(), fs.col("n").sum())
    )
    url = str(tmp_path / "snapshots")
    JobChain(Store.open(url)).claim_run(
        name="totals",
        plan={"flow": before.describe()},
        fingerprint=before.fingerprint,
        partitions=2,
        key_groups=128,
        seed=1,
        created=0.0,
    )
    assert "job 'totals' is, in run 1 with 2 partitions" in checks.snapshots(url, before)
    with pytest.raises(fs.InvalidFlow, match=r"view 'totals': aggregate 'n' was len\(\), is sum\(n\)"):
        checks.snapshots(url, after)
    assert checks.run(("snapshots", lambda: checks.snapshots(url, after))).state == "wrong"


@pytest.mark.kafka
def test_a_broker_and_its_topics(kafka: KafkaBroker) -> None:
    kafka.create_topic("doctor-there", 3)
    assert " answers, and has " in checks.broker(kafka.bootstrap, [])
    assert checks.broker(kafka.bootstrap, ["doctor-there"]).endswith("has doctor-there with 3 partitions")
    found = checks.run(("broker", lambda: checks.broker(kafka.bootstrap, ["doctor-ther"])))
    assert found.state == "wrong"
    assert "did you mean 'doctor-there'?" in found.words
