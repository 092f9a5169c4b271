"""The shell around saves: what the supervisor is told of a cut when its saves overtake each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from one_partition import OnePartition

from flowstate.clock import SystemClock
from flowstate.runtime.commits import Commits
from flowstate.runtime.saving import Saver


class Later(Executor):
    """Runs what was submitted when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self.waiting.append(lambda: function(*arguments, **named))
        return Future()

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


@pytest.mark.parametrize("fails", [False, True])
def test_a_save_that_ends_late_takes_nothing_back_of_a_newer_cut(tmp_path: Path, fails: bool) -> None:
    with OnePartition(tmp_path) as partition:
        spec, store = partition.spec, partition.store
    epoch = partition.pump.epoch + (0 if not fails else -1)  # fenced by its own chain, so that the save fails
    saver = Saver(spec, 0, epoch, store, SystemClock())
    later, posted = Later(), list[Callable[[], None]]()
    manifest, contents, _ = Saver(spec, 0, partition.pump.epoch, store, SystemClock()).load()
    commits = Commits(saver, (manifest, contents), later, SystemClock(), {}, posted.append, lambda: None)
    try:
        commits.save(contents.freeze(), ended=True, cut=6)
        assert later.waiting
        commits.cut_missed(7)  # the save of the older cut is under way
        later.run()
        assert posted
        for each in posted:
            each()
        assert commits.cut_saved["cut"] == 7
        assert "busy" in commits.cut_saved["reason"]
    finally:
        commits.close()
