from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from flowstate.errors import InternalError, InvalidFlow, Unavailable
from flowstate.store import Store
from flowstate.store.local import LocalStore
from flowstate.testing.tormentor import SmallDisk

ROOT = Path(__file__).resolve().parent.parent


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_race_and_one_wins(tmp_path: Path) -> None:
    script = """
    import sys
    from flowstate.store import Store
    store = Store.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    print(*(int(store.create(f"race/{n}", sys.argv[2].encode() * 5000)) for n in range(200)), flush=True)
    """
    racers = [python(script, str(tmp_path), letter) for letter in "abc"]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [[int(each) for each in racer.communicate()[0].split()] for racer in racers]
    store = Store.open(tmp_path)
    for number in range(200):
        assert [each[number] for each in won].count(1) == 1
        winner = next(letter for letter, each in zip("abc", won, strict=True) if each[number])
        assert store.read(f"race/{number}") == winner.encode() * 5000
    assert sum(map(sum, won)) == 200


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_it_writes(tmp_path: Path, seed: int) -> None:
    """Whatever is visible is whole; whatever was reported is visible; what was left is swept."""
    script = """
    import sys
    from flowstate.store import Store
    store = Store.open(sys.argv[1])
    for n in range(100000):
        assert store.create(f"objects/{n:06d}", n.to_bytes(4) * 250_000)
        print(n, flush=True)
    """
    writer = python(script, str(tmp_path))
    assert writer.stdout is not None
    for _ in range(random.Random(seed).randrange(3, 20)):
        reported = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()  # not `communicate`: it leaves out what was read ahead with the lines before
    writer.communicate()
    reported = max([reported, *map(int, rest)])
    store = Store.open(tmp_path)
    names = store.list("objects")
    assert reported + 1 <= len(names) <= reported + 2
    for number, name in enumerate(names):
        assert name == f"{number:06d}"
        assert store.read(f"objects/{name}") == number.to_bytes(4) * 250_000
    store.sweep("objects")  # too young
    store.sweep("objects", older_than=-1)
    assert sorted(os.listdir(tmp_path / "objects")) == names


def test_full_disk(small_disk: Callable[[int], SmallDisk]) -> None:
    folder = small_disk(1 << 20).folder / "snapshots"
    store = Store.open(folder)
    assert store.create("a", b"x" * 600_000)
    with pytest.raises(Unavailable, match="no space left"):
        store.create("b", b"y" * 600_000)
    assert store.list() == ["a"]
    assert os.listdir(folder) == ["a"]
    store.delete("a")
    assert store.create("b", b"y" * 600_000)
    assert store.read("b") == b"y" * 600_000


def test_failed_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    store.create("first", b"")

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="the disk failed"):
            store.create("second", b"data")
    assert os.listdir(tmp_path) == ["first"]
    assert store.create("second", b"data")


def test_lost_answer_of_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: the link was made, the answer was lost, the repeated link finds it there."""
    link = os.link

    def link_twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert Store.open(tmp_path).create("a", b"data")
    assert os.listdir(tmp_path) == ["a"]


def test_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "no", source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InvalidFlow, match="no hard links"):
        Store.open(tmp_path).probe()


def test_folder_vanishes(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a" / "b")
    assert store.create("c/d", b"1")
    (tmp_path / "a" / "b" / "c" / "d").unlink()
    (tmp_path / "a" / "b" / "c").rmdir()
    (tmp_path / "a" / "b").rmdir()
    assert store.create("c/d", b"2")
    assert store.read("c/d") == b"2"


def test_bad_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidFlow, match="cannot be used"):
        Store.open(tmp_path / "file" / "x").probe()
    with pytest.raises(InvalidFlow, match="cannot be used"):
        Store.open(tmp_path).create("x" * 300, b"")
    if os.path.isdir("/proc/self"):
        with pytest.raises(InvalidFlow):
            Store.open("/proc/self/snapshots").probe()
    for url in ("gs://bucket/x", "http://host/x", "abfs://x", "zip://x", "hf://x"):
        with pytest.raises(InvalidFlow, match="use a local folder, s3://"):
            Store.open(url)
    with pytest.raises(InvalidFlow, match="chained"):
        Store.open("simplecache::s3://bucket/x")
    with pytest.raises(InvalidFlow, match="needs a folder"):
        Store.open("")
    with pytest.raises(InvalidFlow, match="three slashes"):
        Store.open("file://folder/x")
    with pytest.raises(InvalidFlow, match="no storage options"):
        Store.open(tmp_path, key="x")
    for path in ("../up", "/absolute", "a//b", ".hidden", "a/."):
        with pytest.raises(InternalError):
            Store.open(tmp_path).create(path, b"")


def test_not_permitted(tmp_path: Path) -> None:
    script = """
    import os, sys
    from flowstate.store import Store
    store = Store.open(sys.argv[1])
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        store.probe()
    except Exception as error:
        print(type(error).__name__, error)
    """
    folder = tmp_path / "mine"
    folder.mkdir()
    for each in (tmp_path, *tmp_path.parents):
        if each != Path("/") and os.stat(each).st_uid == os.geteuid() and each.name.startswith(("pytest", "test")):
            each.chmod(0o755)
    folder.chmod(0o555)
    said = python(script, str(folder)).communicate()[0]
    assert "InvalidFlow no permission; allow this user to write there" in said


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("snap shots/")
    assert isinstance(store, LocalStore)
    assert store.root == str(tmp_path / "snap shots")
    monkeypatch.chdir("/")
    assert store.create("a", b"")
    assert (tmp_path / "snap shots" / "a").exists()
    assert Store.open(f"file://{tmp_path}/snap%20shots") == store
    assert Store.open(f"local://{tmp_path}/snap%20shots").url == store.url


def test_memory_in_another_process() -> None:
    store = Store.open("memory://here")
    script = """
    import pickle, sys
    try:
        pickle.loads(bytes.fromhex(sys.argv[1])).exists("a")
    except Exception as error:
        print(error)
    """
    said = python(script, pickle.dumps(store).hex()).communicate()[0]
    assert "memory:// lives in one process" in said
    assert pickle.loads(pickle.dumps(store)).exists("a") is False
