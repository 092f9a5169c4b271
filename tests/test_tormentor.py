"""The tormentor itself: what it does to processes, sockets, disks and links really happens, and nothing of it is left."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from flowstate.errors import Unavailable
from flowstate.testing.servers import kafka, s3
from flowstate.testing.servers.s3 import S3Server
from flowstate.testing.tormentor import (
    PrivateNetwork,
    ProcessTree,
    Service,
    SmallDisk,
    Victim,
    cut_connections,
    free_port,
    marks,
    sockets,
    sweep,
)

#: Starts a child in a session of its own, says the numbers of both, and waits.
PARENT = """
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    mine = f"{marks.PREFIX}{os.getpid()}-"
    before = {each for each in marks._marks() if each[1].startswith(mine)}  # a broker that the whole session shares
    yield
    assert {each for each in marks._marks() if each[1].startswith(mine)} <= before
    assert mine not in Path("/proc/mounts").read_text()
    spaces = Path("/run/netns")
    assert not [each for each in (spaces.iterdir() if spaces.exists() else ()) if each.name.startswith(mine)]


def needs(reason: str | None) -> pytest.MarkDecorator:
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def test_a_killed_tree_takes_its_children_of_other_sessions_along(tmp_path: Path) -> None:
    with ProcessTree([sys.executable, "-c", PARENT], tmp_path / "log", talks=True) as tree:
        parent, child = map(int, tree.hear().split())
        assert {each.pid for each in tree.members()} == {parent, child}
        tree.kill()
        assert not Victim(parent).alive
        assert not Victim(child).alive


def test_a_victim_is_frozen_and_goes_on(tmp_path: Path) -> None:
    counts = "import time\nwhile True: print('.', flush=True); time.sleep(0.01)"
    with ProcessTree([sys.executable, "-c", counts], tmp_path / "log") as tree:
        until(lambda: tree.log.stat().st_size > 20)
        victim = tree.root
        with victim.frozen():
            until(lambda: victim.state == "T")
            said = tree.log.stat().st_size
            assert victim.alive
            time.sleep(0.1)
            assert tree.log.stat().st_size == said
        until(lambda: tree.log.stat().st_size > said)
        assert victim.memory > 1 << 20
        assert victim.threads >= 1
        assert str(tree.log) in victim.descriptors
        assert "print" in victim.command


def test_a_program_ends_when_asked_and_is_killed_when_it_does_not(tmp_path: Path) -> None:
    obeys = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('.', flush=True)\nsignal.pause()"
    tree = ProcessTree([sys.executable, "-c", obeys], tmp_path / "log", talks=True)
    assert tree.hear() == "."
    assert tree.end() == 7
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('.', flush=True)\nwhile True: signal.pause()"
    tree = ProcessTree([sys.executable, "-c", deaf], tmp_path / "log", talks=True)
    assert tree.hear() == "."
    assert tree.end(0.2) == -signal.SIGKILL


def test_a_service_comes_back_unless_it_is_killed_for_good(tmp_path: Path) -> None:
    with Service(
        "sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", pause=0.01
    ) as service:
        first = service.tree.root
        service.kill()
        until(lambda: any(each.pid != first.pid for each in service.members()))
        assert not first.alive
        service.kill(for_good=True)
        until(lambda: service.restarts == 2 and not service.members())
        with pytest.raises(Unavailable, match="not running"):
            _ = service.tree
        service.bring_back()
        until(lambda: bool(service.members()))
        last = service.members()[0]
    assert not last.alive


LEAVES = """
import sys, threading
from pathlib import Path
from flowstate.testing.tormentor import PrivateNetwork, ProcessTree, SmallDisk
left = [ProcessTree([sys.executable, "-c", PARENT], Path("log"), talks=True)]
said = left[0].hear()
if not SmallDisk.missing():
    left.append(SmallDisk(Path("disk"), 1 << 20))
if not PrivateNetwork.missing():
    left.append(PrivateNetwork("10.213.78"))
    left[-1].host("a")
print(said, flush=True)
threading.Event().wait()
"""


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", f"PARENT = {PARENT!r}\n{LEAVES}"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        parent, child = map(int, program.stdout.readline().split())
        assert not [each for each in sweep() if f"-{program.pid}-" in each]  # it lives, and so does what it made
        assert Victim(child).alive
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
    until(lambda: not Victim(parent).alive)  # with its parent
    swept = sweep()
    assert any(f"process {child} " in each for each in swept)
    until(lambda: not Victim(child).alive)
    name = f"{marks.PREFIX}{program.pid}-"
    assert name not in Path("/proc/mounts").read_text()
    assert SmallDisk.missing() or any(each.startswith("mount") for each in swept)
    assert PrivateNetwork.missing() or len([each for each in swept if name in each and "namespace" in each]) == 2
    assert sweep() == []


@needs(sockets.missing())
def test_connections_are_cut_at_both_ends_and_the_listener_stays() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as ours, server.accept()[0] as theirs:
            assert sockets.connections(port) == 2
            assert cut_connections(port) in (1, 2)  # resetting one end resets the other
            for end in (ours, theirs):
                with pytest.raises(ConnectionError):
                    end.recv(1)
        assert cut_connections(port) == 0
        socket.create_connection(("127.0.0.1", port)).close()


@needs(SmallDisk.missing())
def test_a_small_disk_is_full_until_it_is_cleared(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 1 << 20) as disk:
        assert isinstance(disk, SmallDisk)
        (disk.folder / "before").write_bytes(b"x" * 5000)
        disk.fill()
        assert disk.free == 0
        with (disk.folder / "more").open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
            file.write(b"x")
        assert caught.value.errno == errno.ENOSPC
        disk.clear()
        (disk.folder / "more").write_bytes(b"x" * 5000)
        disk.fill(leave=100_000)
        assert 90_000 < disk.free <= 104_096
        assert (disk.folder / "before").read_bytes() == b"x" * 5000
    assert list(disk.folder.iterdir()) == []


ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("up", flush=True)
    while True:
        with server.accept()[0] as peer:
            while data := peer.recv(100):
                peer.sendall(data)
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as peer:
    for line in sys.stdin:
        peer.settimeout(float(line))
        try:
            peer.sendall(b"x")
            print("heard" if peer.recv(1) else "closed", flush=True)
        except TimeoutError:
            print("silence", flush=True)
"""


@needs(PrivateNetwork.missing())
def test_a_cut_link_is_silent_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with PrivateNetwork("10.213.79") as network:
        assert isinstance(network, PrivateNetwork)
        left, right, port = network.host("left"), network.host("right"), str(free_port())
        assert network.addresses() == ["10.213.79.1", left.address, right.address]
        echo = left.command(sys.executable, "-c", ECHO, left.address, port)
        with ProcessTree(echo, tmp_path / "echo", talks=True) as server:
            assert server.hear() == "up"
            calling = right.command(sys.executable, "-c", CALL, left.address, port)
            with ProcessTree(calling, tmp_path / "call", talks=True) as call:
                assert call.ask("5") == "heard"
                left.cut()
                assert call.ask("0.3") == "silence"
                left.join()
                assert call.ask("10") == "heard"
        outside = subprocess.run(left.command("ip", "route", "get", "192.0.2.1"), capture_output=True, text=True)
        assert outside.returncode != 0  # there is no way out


@needs(PrivateNetwork.missing())
def test_a_thread_in_a_host_sees_that_host_alone() -> None:
    with PrivateNetwork("10.213.80") as network:
        assert isinstance(network, PrivateNetwork)
        host, found = network.host("one"), list[bool]()

        def bind() -> None:
            host.enter()
            with socket.socket() as probe:
                probe.bind((host.address, 0))
            found.append(True)

        thread = threading.Thread(target=bind)
        thread.start()
        thread.join(10)
        assert found == [True]
        with socket.socket() as probe, pytest.raises(OSError):
            probe.bind((host.address, 0))


@pytest.mark.s3
@needs(s3.missing())
def test_an_s3_server_that_is_killed_comes_back_with_what_it_had(tmp_path: Path) -> None:
    from flowstate.store import Store

    server = S3Server(tmp_path)
    try:
        server.start()
        store = Store.open(server.bucket("things"), **server.storage_options)
        assert store.create("a", b"1")
        server.kill()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(server.endpoint.rsplit(":", 1)[1])), timeout=1)
        server.start()
        assert store.read("a") == b"1"
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(900)
@needs(kafka.missing())
def test_two_minutes_of_faults_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in [str(root), *sys.path] if each)}
    command = [sys.executable, "-m", "benchmarks.torment_soak", "--minutes", "2", "--seed", "5"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
