"""Files that grow, turn up, are rotated, replaced, shortened or never were there."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from flowstate.errors import CorruptData, InvalidFlow
from flowstate.plan.spec import ScanSpec
from flowstate.source import Rows, SourceReader, make_source

SCHEMA = pa.schema([("n", pa.int64())])


def scan(url: object, follow: bool = True, **options: Any) -> ScanSpec:
    return ScanSpec("log", "files", SCHEMA, options={"url": str(url), "format": "json", "follow": follow, **options})


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def lines(*numbers: int) -> bytes:
    return b"".join(map(line, numbers))


class Follower:
    """Reads all that a source has, discovering splits as it goes, as a running job does; remembers where it stands."""

    def __init__(self, spec: ScanSpec, positions: dict[str, int] | None = None) -> None:
        self.source = make_source(spec)
        self.reader: SourceReader = self.source.open()
        self.positions = dict(positions or {})
        self.assigned: set[str] = set()
        self.given: list[Rows] = []

    def step(self, discover: bool = True) -> list[int]:
        """The numbers that came since the last step."""
        if discover:
            for each in self.source.splits():
                if each.name not in self.assigned:
                    self.assigned.add(each.name)
                    self.positions.setdefault(each.name, each.start)
                    self.reader.assign(each, self.positions[each.name])
        numbers = []
        while given := self.reader.poll(dict.fromkeys(self.assigned), max_rows=1000, timeout=0):
            for rows in given:
                assert rows.since == self.positions[rows.split]
                self.positions[rows.split] = rows.to
                numbers += rows.batch.column("n").to_pylist()
                self.given.append(rows)
        return numbers

    def dead(self) -> list[dict[str, Any]]:
        return [each for rows in self.given for each in rows.dead.to_pylist()]


@pytest.mark.parametrize("seed", range(3))
def test_a_log_written_in_torn_pieces_gives_every_line_once(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    data = lines(*range(60))
    follower = Follower(scan(tmp_path / "*.jsonl"))
    numbers: list[int] = []
    names: set[str] = set()
    with (tmp_path / "a.jsonl").open("wb", buffering=0) as file:
        at = 0
        while at < len(data):
            size = dice.choice((1, 1, 2, 9, 30))
            file.write(data[at : at + size])
            at += size
            names |= {each.name for each in follower.source.splits()}
            numbers += follower.step()
            whole = data[:at].count(b"\n")
            assert numbers == list(range(whole))
            if dice.random() < 0.1:
                follower = Follower(scan(tmp_path / "*.jsonl"), follower.positions)
    assert len(names) == 1


def test_a_torn_last_line_waits_when_following_and_is_a_row_when_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(1, 2) + b'{"n":3}')
    follower = Follower(scan(path))
    assert follower.step() == [1, 2]
    (name,) = follower.assigned
    assert follower.reader.end_offset(name) == len(lines(1, 2))
    finite = Follower(scan(path, follow=False))
    assert finite.step() == [1, 2, 3]
    assert finite.assigned == {name}
    with path.open("ab") as file:
        file.write(b"\n")
    assert follower.step() == [3]


def test_a_finite_file_that_grows_after_a_torn_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(1, 2) + b'{"n":3')
    follower = Follower(scan(path, follow=False))
    follower.source.splits()
    (split,) = follower.source.splits()
    follower.reader.assign(split, 0)
    with path.open("ab") as file:
        file.write(b"4}\n")
    assert len(follower.reader.poll({split.name: None}, max_rows=2, timeout=0)) == 1
    with pytest.raises(CorruptData, match="pass follow=True"):
        follower.reader.poll({split.name: None}, max_rows=2, timeout=0)


def test_a_new_file_is_found_and_an_empty_one_is_not_yet_a_split(tmp_path: Path) -> None:
    follower = Follower(scan(tmp_path / "*.jsonl"))
    assert follower.step() == []
    (tmp_path / "a.jsonl").write_bytes(lines(1))
    (tmp_path / "b.jsonl").touch()
    assert follower.step() == [1]
    (tmp_path / "b.jsonl").write_bytes(lines(2, 3))
    assert follower.step() == [2, 3]
    assert len(follower.assigned) == 2


def test_splits_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(ord(name)))
    (tmp_path / "_temporary").write_bytes(lines(0))
    (tmp_path / ".hidden").write_bytes(lines(1))
    labels = [Path(each.label).name for each in make_source(scan(tmp_path, follow=False)).splits()]
    assert labels == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_rotation_counts_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    follower = Follower(scan(tmp_path / "app.log*"))
    expected = []
    got: list[int] = []
    number = 0
    for generation in range(5):
        with path.open("ab", buffering=0) as file:
            for _ in range(20):
                file.write(line(number))
                expected.append(number)
                number += 1
                if number % 7 == 0:
                    got += follower.step(discover=number % 2 == 0)
            for old in range(generation, 0, -1):
                for suffix in ("", ".gz"):
                    if (tmp_path / f"app.log.{old}{suffix}").exists():
                        os.rename(tmp_path / f"app.log.{old}{suffix}", tmp_path / f"app.log.{old + 1}{suffix}")
            os.rename(path, tmp_path / "app.log.1")
            # The writer still has the file open, and writes once more.
            file.write(line(number))
            expected.append(number)
            number += 1
        if generation % 2:
            (tmp_path / "app.log.1.gz").write_bytes(gzip.compress((tmp_path / "app.log.1").read_bytes()))
            got += follower.step()
            (tmp_path / "app.log.1").unlink()
    got += follower.step()
    assert sorted(got) == expected
    resumed = Follower(scan(tmp_path / "app.log*"), follower.positions)
    assert resumed.step() == []
    assert resumed.assigned == follower.assigned


def test_a_log_renamed_to_where_the_url_does_not_reach_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(lines(1, 2))
    follower = Follower(scan(path))
    assert follower.step() == [1, 2]
    with path.open("ab") as file:
        file.write(lines(3))
    os.rename(path, tmp_path / "old")
    assert follower.step() == [3]
    path.write_bytes(lines(10, 11))
    assert follower.step() == [10, 11]


def test_copy_and_truncate(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(lines(1, 2, 3))
    follower = Follower(scan(tmp_path / "app.log*"))
    assert follower.step() == [1, 2, 3]
    with path.open("ab") as file:
        file.write(lines(4))
    (tmp_path / "app.log.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(lines(*range(100, 110)))
    assert sorted(follower.step()) == [4, *range(100, 110)]


def test_a_shortened_file_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(lines(1, 2, 3))
    follower = Follower(scan(path))
    assert follower.step() == [1, 2, 3]
    os.truncate(path, len(lines(1)))
    for _ in range(2):
        with pytest.raises(CorruptData, match=r"shorter.*start again with new snapshots.*read_up_to=24"):
            follower.step()
    with pytest.raises(CorruptData, match="shorter"):
        Follower(scan(path), follower.positions).step()


@pytest.mark.parametrize("follow", [True, False])
def test_a_file_replaced_in_place_before_it_was_read_is_a_named_error(tmp_path: Path, follow: bool) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(lines(1, 2, 3))
    source = make_source(scan(path, follow))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    (rows,) = reader.poll({split.name: None}, max_rows=2, timeout=0)
    assert rows.batch.num_rows == 2
    reader = source.open()
    reader.assign(split, rows.to)
    path.write_bytes(lines(7, 8, 9, 10))
    with pytest.raises(CorruptData, match=r"replaced or shortened.*put it back"):
        reader.poll({split.name: None}, max_rows=10, timeout=0)
    path.write_bytes(lines(1, 2, 3))
    if follow:
        (rows,) = reader.poll({split.name: None}, max_rows=10, timeout=0)
        assert rows.batch.column("n").to_pylist() == [3]
    path.unlink()
    reader = source.open()
    reader.assign(split, rows.since)
    with pytest.raises(CorruptData, match=r"removed.*put it back"):
        reader.poll({split.name: None}, max_rows=10, timeout=0)


def test_files_that_begin_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_bytes(lines(1, 2, 3))
    two.write_bytes(lines(1, 2))
    follower = Follower(scan(tmp_path / "*.jsonl"))
    assert follower.step() == [1, 2, 3]  # A copy of its beginning is the same log.
    follower.step()
    [told] = {each.message for each in caplog.records if each.name.startswith("flowstate.source")}
    assert "a.jsonl" in told
    assert "b.jsonl hold the same log, which is read once" in told
    two.write_bytes(lines(1, 9))
    with pytest.raises(InvalidFlow, match="identity='path'"):
        follower.step()
    assert sorted(Follower(scan(tmp_path / "*.jsonl", identity="path")).step()) == [1, 1, 2, 3, 9]


def test_a_long_line_is_a_dead_letter_however_it_arrives(tmp_path: Path) -> None:
    long = b'{"n":1,"text":"' + b"x" * 300_000 + b'"}'
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(1) + long + b"\r\n" + line(2) + b'{"n": 3        }\n' + long)
    seen = []
    for max_line in (1000, 100_000):
        finite = Follower(scan(path, follow=False, max_line_bytes=max_line))
        assert finite.step() == [1, 2, 3]
        reason = f"the line is {len(long)} bytes long, max_line_bytes is {max_line}"
        assert [(each["offset"], each["reason"]) for each in finite.dead()] == [
            (len(line(1)), reason),
            (os.path.getsize(path) - len(long), reason),
        ]
        seen.append([each["raw"] for each in finite.dead()])
    assert seen[0] == seen[1] == [long[:65536]] * 2
    assert Follower(scan(path, follow=False)).step() == [1, 1, 2, 3, 1]
    with path.open("ab") as file:
        file.write(b"\n" + b" " * 50 + line(4))
    short = Follower(scan(path, max_line_bytes=50))
    assert short.step() == [1, 2, 3]
    assert [each["offset"] for each in short.dead()][2:] == [os.path.getsize(path) - len(line(4)) - 50]


def test_a_very_long_line_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(line(1))
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + line(2))
    follower = Follower(scan(path, max_line_bytes=1 << 20))
    numbers: list[int] = []
    for _ in range(20):
        numbers += follower.step()
    assert numbers == [1, 2]
    (dead,) = follower.dead()
    assert dead["reason"] == f"the line is {40 << 20} bytes long, max_line_bytes is {1 << 20}"


def test_csv_header_names_the_columns_also_when_it_grows(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), ("b", pa.string())])
    path = tmp_path / "x.csv"
    spec = ScanSpec("log", "files", schema, options={"url": str(path), "follow": True})
    path.write_bytes(b"\xef\xbb\xbfc,b,a\r\n")
    source = make_source(spec)
    assert source.splits() == []
    with path.open("ab") as file:
        file.write(b"?,x,1\r\n")
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    (rows,) = reader.poll({split.name: None}, max_rows=10, timeout=0)
    with path.open("ab") as file:
        file.write(b"?,,2\r\n?,y,\r\n")
    (more,) = reader.poll({split.name: None}, max_rows=10, timeout=0)
    assert [tuple(each.values()) for each in [*rows.batch.to_pylist(), *more.batch.to_pylist()]] == [
        (1, "x", 10),
        (2, None, 17),
    ]
    assert more.dead.column("reason").to_pylist() == ["field 'a' is required, but missing or null"]


def test_parquet_types_are_cast_only_where_no_value_changes(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"n": pa.array(["1", "x", "3", None]), "other": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "a.parquet")
    spec = ScanSpec("log", "files", SCHEMA, options={"url": str(tmp_path / "a.parquet")})
    follower = Follower(spec)
    assert follower.step() == [1, 3, None]
    (dead,) = follower.dead()
    assert dead["offset"] == 1
    assert json.loads(dead["raw"]) == {"n": "x", "other": 2}
    assert dead["reason"].startswith("field 'n': Failed to parse string: 'x'")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CorruptData, match=r"a\.parquet"):
        make_source(ScanSpec("log", "files", SCHEMA, options={"url": str(tmp_path / "a.parquet")})).splits()


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst", "lz4"])
def test_a_torn_compressed_file_is_an_error_when_finite_and_waited_for_when_followed(
    tmp_path: Path, compression: str
) -> None:
    path = tmp_path / f"a.jsonl.{compression}"
    whole = _compress(lines(*range(200_000)), compression)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptData, match=r"ends in the middle.*a\.jsonl\."):
        Follower(scan(path, follow=False)).step()
    follower = Follower(scan(path))
    first = follower.step()
    path.write_bytes(whole)
    assert first + follower.step() == list(range(200_000))
    assert follower.step() == []
    if compression in ("zst", "lz4"):
        return  # Arrow writes no checksum that would find damage within.
    path.write_bytes(whole[:100] + bytes(100) + whole[200:])
    with pytest.raises(CorruptData):
        Follower(scan(path, follow=False)).step()


def _compress(data: bytes, compression: str) -> bytes:
    if compression in ("zst", "lz4"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, {"zst": "zstd"}.get(compression, compression)) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip, "bz2": bz2, "xz": lzma}[compression].compress(data)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("evnts.jsonl", {}, r"did you mean 'events.jsonl'\?"),
        ("evnts.jsonl", {"follow": True}, r"did you mean 'events.jsonl'\?"),
        ("*.nothing", {}, "follow=True"),
        ("no/such/folder/*.jsonl", {"follow": True}, "there is no file"),
        ("nosuchprotocol://x", {}, "not a url"),
        ("events.jsonl", {"compression": "gzp"}, "did you mean 'gzip'"),
        ("events.jsonl", {"format": "jsn"}, "did you mean 'json'"),
        ("events", {"format": None}, "format='json'"),
        ("", {}, "no url"),
    ],
)
def test_mistakes_are_clear_at_once(tmp_path: Path, url: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "events.jsonl").write_bytes(lines(1))
    where = url if "://" in url or not url else str(tmp_path / url)
    began = time.monotonic()
    with pytest.raises(InvalidFlow, match=message):
        make_source(scan(where, **{"follow": False, **options})).splits()
    assert time.monotonic() - began < 10


def test_other_storage_through_fsspec() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/source-test/a.jsonl", lines(1, 2))
    store.pipe("/source-test/b.jsonl.gz", gzip.compress(lines(3)))
    assert sorted(Follower(scan("memory://source-test/*.jsonl*", follow=False)).step()) == [1, 2, 3]
    follower = Follower(scan("memory://source-test/a.jsonl"))
    assert follower.step() == [1, 2]
    store.pipe("/source-test/a.jsonl", lines(1, 2, 4))
    assert follower.step() == [4]
