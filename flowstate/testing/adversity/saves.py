"""Saves and output of an incarnation in a simulation: the real `Committing`, the real `Saver` step by step, the real sinks.

The incarnation may die before any step; the step that was under way then still lands, or does not. The store fails before a step, or
does what it was asked and the answer is lost.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from flowstate.errors import CorruptData, Fenced, Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.runtime.committing import Committing, Saved, SaveWork
from flowstate.runtime.contents import Contents, Frozen
from flowstate.snapshot.manifest import Manifest
from flowstate.testing.adversity.fault import Fault

if TYPE_CHECKING:
    from flowstate.testing.adversity.incarnation import Incarnation
    from flowstate.testing.adversity.world import World

Steps = Generator[str, None, Saved]


class Saves:
    """Of one incarnation, from its restore on."""

    def __init__(self, world: World, incarnation: Incarnation, contents: Contents, manifest: Manifest) -> None:
        self.world, self.incarnation, self.saver = world, incarnation, incarnation.saver
        every = world.random.choice((1, 20, 100))
        self.committing = Committing(incarnation.number, contents, manifest, every=every, now=world.now)

    def save_if_due(self) -> bool:
        machine, world, committing, incarnation = (
            self.incarnation.machine,
            self.world,
            self.committing,
            self.incarnation,
        )
        assert machine is not None
        ended = machine.ended and committing.end_saved
        if ended != (incarnation.state == "ended"):  # a split may be found after all
            incarnation.state = "ended" if ended else "live"
            incarnation.report()
        if committing.saving or not (
            committing.due(machine.ended, world.now) or (not machine.ended and world.happens(world.save_rate))
        ):
            return False
        self.save(incarnation.contents.freeze(), None)
        return True

    def save_cut(self, cut: int) -> None:
        if not self.committing.saving:
            self.save(self.incarnation.contents.freeze(), cut)

    def save(self, frozen: Frozen, cut: int | None) -> None:
        machine = self.incarnation.machine
        assert machine is not None
        work = self.committing.begin(frozen, ended=frozen.marks.ended and machine.ended, cut=cut, now=self.world.now)
        if work is None:
            self.note_saved(cut)
        else:
            self.world.counts["saves"] += 1
            self.world.later(self.advance, work, self.saver.steps(work), "")

    def advance(self, work: SaveWork, steps: Steps, step: str) -> None:
        """Carry out `step`, before which the save has stopped. It was under way already when the incarnation died, if it did."""
        world = self.world
        alive = self.incarnation.running
        if world.happens(world.trouble):
            steps.close()
            world.later(self.failed, work)
            return
        before = self.saver.chain.load() if step == "manifest" else None
        try:
            following = next(steps)
        except StopIteration as done:
            saved: Saved = done.value
            newly = saved.manifest is not None and saved.manifest is not work.previous
            if newly and before is not None and before.epoch > self.incarnation.epoch:
                raise Fault("an epoch in a chain fell") from None
            if newly and world.happens(world.trouble):  # the answer was lost
                world.later(self.failed, work)
                return
            world.risk(self.incarnation)
            world.later(self.saved, work, saved)
            return
        world.risk(self.incarnation)
        if alive:
            world.later(self.advance, work, steps, following)

    def failed(self, work: SaveWork) -> None:
        if self.incarnation.running:
            self.committing.failed(work, "simulated", self.world.now)
            self.world.counts["failed saves"] += 1

    def saved(self, work: SaveWork, saved: Saved) -> None:
        if not self.incarnation.running:
            return
        if saved.stalled:
            raise Fault(f"a sink stands still: {saved.stalled}")
        try:
            self.committing.saved(work, saved, self.world.now)
        except Fenced as error:
            self.incarnation.end("fenced", str(error))
            return
        self.publish_all()
        self.note_saved(work.cut)

    def note_saved(self, cut: int | None) -> None:
        if cut is not None:
            self.incarnation.cut_saved = {"cut": cut, "version": self.committing.manifest.version}
            self.incarnation.report()

    # publishing

    def publish_all(self) -> None:
        for each in self.committing.to_publish():
            self.world.later(self.publish, each, delays=(1, 5, 60))

    def publish(self, staged: StagedOutput) -> None:
        """It may come long after its incarnation has died: the manifest has decided."""
        world = self.world
        try:
            if world.happens(world.trouble):
                raise Unavailable("the sink is away")
            self.saver.publish(staged)
        except Unavailable:
            if self.incarnation.running:
                world.later(self.publish, staged, delays=(5, 60))
            return
        except CorruptData as damage:
            raise Fault(f"output that a manifest named cannot be published: {damage}") from damage
        world.counts["published"] += 1
        world.risk(self.incarnation)
        if self.incarnation.running:
            self.committing.published(staged)
            self.publish_all()
