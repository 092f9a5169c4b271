"""A flow explained: the tree, the chart and the picture tell the same, of what the plan knows, and nothing is touched for it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from asking import ask_all

import flowstate as fs
from flowstate.command.target import load_outputs
from flowstate.plan import drawing
from flowstate.plan.graph import Graph, graph

SCHEMA = pa.schema({"k": pa.string(), "n": pa.int64(), "at": pa.timestamp("ms", "UTC")})
FLOW = """
import pyarrow as pa
import pytest
import flowstate as fs
SCHEMA = pa.schema({"k": pa.string(), "n": pa.int64(), "at": pa.timestamp("ms", "UTC")})
def flow():
    rows = fs.scan_kafka("topic", bootstrap="nowhere.invalid:1", schema=SCHEMA, event_time="at", lateness="1h")
    totals = rows.group_by("k", day=fs.window("at", every="1d", grace="2h")).agg(n=fs.len()).view("totals")
    return totals, totals.final().sink_json("out/")
broken = fs.scan_kafka("topic", bootstrap="nowhere.invalid:1", schema=SCHEMA)
"""


def drawn() -> Graph:
    rows = fs.scan_kafka("topic", bootstrap="nowhere:1", schema=SCHEMA, event_time="at", lateness="1h")
    big = rows.filter(fs.col("k") != "<script>&")
    totals = big.group_by("k", day=fs.window("at", every="1d", grace="2h")).agg(n=fs.col("n").sum()).view("totals")
    outputs = [
        totals,
        totals.final().sink_json("out?secret=1"),
        totals.late().sink_csv("late/"),
        rows.sink_json("all/"),
    ]
    return graph(each.node for each in outputs)


def test_what_outputs_share_is_one_box() -> None:
    found = drawn()
    assert [each.kind for each in found.boxes].count("source") == 1
    assert [each.kind for each in found.boxes].count("view") == 1
    assert [each.kind for each in found.boxes].count("sink") == 3
    (source,) = found.first
    assert {each.kind for each in found.after(source.number)} == {"step", "sink"}
    (view,) = (each for each in found.boxes if each.kind == "view")
    assert {each.name for each in found.after(view.number)} == {"final rows", "late rows"}
    assert view.columns[-1] == ("n", "int64")


def test_tree_chart_and_picture_tell_all_of_it_and_no_secret() -> None:
    found = drawn()
    tree, chart, picture = drawing.text(found), drawing.mermaid(found), drawing.svg(found)
    assert tree.splitlines()[0] == "source topic"
    for told in (tree, chart, picture):
        assert "secret" not in told
    for each in ("kafka: topic", "lateness 1h", "view totals", "key k", "n = sum(n)", "sink csv", "late/"):
        assert each in tree
        assert each in picture.replace("&#x27;", "'")
    assert chart.count("-->") == len(found.arrows) == len(found.boxes) - 1
    assert "<script>" not in chart
    root = ElementTree.fromstring(picture)
    tags = {each.tag.rpartition("}")[2] for each in root.iter()}
    assert tags == {"svg", "title", "style", "path", "g", "rect", "text"}
    boxes = [each.attrib for each in root.iter() if each.tag.endswith("rect")]
    places = [(float(each["x"]), float(each["y"]), float(each["width"]), float(each["height"])) for each in boxes]
    assert len(places) == len(found.boxes)
    for place, (x, y, width, height) in enumerate(places):
        assert 0 <= x <= x + width <= float(root.attrib["width"])
        assert 0 <= y <= y + height <= float(root.attrib["height"])
        for other_x, other_y, other_width, other_height in places[:place]:
            apart = (
                x >= other_x + other_width
                or other_x >= x + width
                or y >= other_y + other_height
                or other_y >= y + height
            )
            assert apart, "no box lies on another"


def test_from_a_shell_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "the_flow.py").write_text(FLOW)
    place = str(tmp_path / "the_flow.py")
    told, wrong = ask_all(["explain", f"{place}:flow", "--json"], ["explain", f"{place}:flows"])
    assert told.code == 0, told
    known = json.loads(told.out)
    assert known["views"]["totals"]["keys"] == ["k", "day", "day_end"]
    assert known["plan"]["sources"]["topic"]["event time"] == "at"
    assert len(known["fingerprint"]) == 64
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean 'flow'?" in wrong.errors


def test_arguments_of_the_flow_take_the_types_of_its_parameters(tmp_path: Path) -> None:
    (tmp_path / "taking.py").write_text(
        "import flowstate as fs, pyarrow as pa\n"
        "def flow(topic: str, every='1d', most=3, exact: bool = False):\n"
        "    assert (type(most), exact) == (int, True), (most, exact)\n"
        "    rows = fs.scan_kafka(topic, bootstrap='nowhere:1', schema=pa.schema({'n': pa.int64(), 'at': pa.timestamp('ms')}))\n"
        "    return rows.group_by(day=fs.window('at', every=every)).agg(n=fs.len()).view('totals')\n"
    )
    place = f"{tmp_path}/taking.py:flow"
    (output,), _ = load_outputs(place, ["topic=a=b", "every=1h", "most=7", "exact=yes"])
    assert "every='1h'" in output.explain()
    assert "scan_kafka('a=b'" in output.explain()
    for settings, message in (
        ([], r"needs --set topic=\.\.\."),
        (["topic=a", "mots=1"], "did you mean 'most'"),
        (["topic=a", "most=many"], "most is a number"),
        (["topic=a", "exact=maybe"], "exact is true or false"),
        (["topic"], "--set is NAME=VALUE"),
    ):
        with pytest.raises(fs.InvalidFlow, match=message):
            load_outputs(place, settings)
