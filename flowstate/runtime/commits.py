"""The thin shell of `committing`: saves on the pool, publishing on threads of its own, answers back on the pump's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from flowstate.clock import Clock
from flowstate.plan.output import StagedOutput
from flowstate.runtime.aside import Aside, aside_pool
from flowstate.runtime.committing import Committing, Saved, SaveWork
from flowstate.runtime.contents import Contents, Frozen
from flowstate.runtime.saving import Saver
from flowstate.snapshot.manifest import Manifest

Post = Callable[[Callable[[], None]], None]


class Commits:
    """Of one incarnation that has loaded its state. All methods on the pump's thread; `post` brings answers there. `report`: something
    happened that the supervisor should know. `cut_saved` is what became of the last cut that was to be saved."""

    def __init__(
        self, saver: Saver, loaded: tuple[Manifest, Contents], pool: Executor, clock: Clock, problems: dict[str, str],
        post: Post, report: Callable[[], None],
    ) -> None:  # fmt: skip
        manifest, contents = loaded
        self.saver, self.pool, self.clock, self.post, self.report = saver, pool, clock, post, report
        every, now = saver.spec.every, clock.monotonic()
        self.machine = Committing(saver.partition, contents, manifest, every=every, now=now, problems=problems)
        self.saved_at = manifest.state.as_of if manifest.state else clock.wall()
        self.seconds = 0.0
        self.cut_saved: dict[str, Any] = {}
        # Threads of their own, so that a sink that does not answer keeps no save, and no other sink, from its turn.
        self._publishing = Aside(aside_pool(max(1, len(contents.outputs))), post, problems)
        self._publish()

    def save(self, frozen: Frozen, *, ended: bool, cut: int | None = None) -> None:
        """Begin to save what was frozen in this very moment."""
        work = self.machine.begin(frozen, ended=ended, cut=cut, now=self.clock.monotonic(), wall=self.clock.wall())
        if work is None:
            self._note(cut)  # nothing has changed: the manifest that there is says it all
        else:
            self.pool.submit(self._save_aside, work)

    def cut_missed(self, cut: int) -> None:
        self._say_of_cut(cut, reason="a partition was still busy with its save before")

    def _save_aside(self, work: SaveWork) -> None:
        began = self.clock.monotonic()
        try:
            saved = self.saver.save(work)
        except Exception as error:
            self.post(partial(self._failed, work, f"{type(error).__name__}: {error}"))
        else:
            self.post(partial(self._saved, work, saved, self.clock.monotonic() - began))

    def _failed(self, work: SaveWork, reason: str) -> None:
        self.machine.failed(work, reason, self.clock.monotonic())
        if work.cut is not None:
            self._say_of_cut(work.cut, reason=reason)
            self.report()

    def _saved(self, work: SaveWork, saved: Saved, seconds: float) -> None:
        self.machine.saved(work, saved, self.clock.monotonic())
        self.seconds = seconds
        self._publish()
        self._note(work.cut)

    def _note(self, cut: int | None) -> None:
        self.saved_at = self.clock.wall()
        if cut is not None:
            self._say_of_cut(cut, version=self.machine.manifest.version)
        self.report()

    def _say_of_cut(self, cut: int, **what: Any) -> None:
        """What became of a cut here. The save of an older one, which may end later, takes nothing back that was said of a newer."""
        if cut >= self.cut_saved.get("cut", 0):
            self.cut_saved = {"cut": cut, **what}

    def _publish(self) -> None:
        for each in self.machine.to_publish():
            what = f"publishing sink {each.sink}"
            self._publishing.do(what, partial(self.saver.publish, each), partial(self._published, each))

    def _published(self, staged: StagedOutput, rejected: int) -> None:
        self.machine.published(staged, rejected)
        self._publish()

    def close(self) -> None:
        """What is under way ends by itself."""
        self._publishing.stop()
        self._publishing.pool.shutdown(wait=False, cancel_futures=True)
        self.saver.close()
