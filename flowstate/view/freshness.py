"""How fresh an answer must be: the promise that a reader asks for, on every way of reading.

An answer keeps what was asked for, or is refused with an error that says by how much it missed and when to try again. Nothing waits for
longer than the read's patience, and nothing is ever quietly older than was asked for.

* Nothing asked: the latest. Live where a partition is there; what it saved last, whatever its age, where it is away (see `saved`).
* ``max_age``: saved state may be at most this old, in seconds; 0 for live answers alone. Live state has no age.
* ``at_least``: every part of the answer has applied its splits at least to these places: read your own writes. `Behind` if it has not
  come so far in time. Whoever wrote a record at offset n of split s asks for ``{s: n + 1}``. A split may be named by the end of its name
  (Kafka: ``"topic/3"``), where that is enough to tell it from others.
* ``wait``: seconds for which ``at_least`` may be waited for, instead of the reader's patience and never longer than that; 0 asks for what
  is there. A partition that does not answer at all is looked for besides, before its saved state is read or the read is refused.
* ``consistent``: all parts at one position, made now: fresh and consistent. One cut serves all that one read sees.
* ``snapshot``: the number of a saved cut: everything as it was then, also long after.

`cut` is what `consistent` has become when the cut is made: its number, by which the partitions keep it. A cut has a position, so nothing
else is asked of it. `once` says that it was made for one read: it makes room for cuts that sessions read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from flowstate.errors import Behind, InvalidFlow
from flowstate.plan.position import Place

#: Splits that one read may name.
MAX_SPLITS = 10_000
#: Seconds; an age beyond that is any age.
LONGEST_AGE = 1e15
#: Seconds for which a request waits at most for what it asks.
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Freshness:
    """What is asked of one read; `Freshness()` is the latest. Plain data; `checked` makes one from what a person or a client gives."""

    max_age: float | None = None
    at_least: Mapping[str, Place] = field(default_factory=dict)
    consistent: bool = False
    snapshot: int | None = None
    cut: int | None = None
    once: bool = False
    wait: float | None = None

    def within(self, wait: float | None) -> Freshness:
        """The same with another `wait`; where nothing can be waited for, there is none."""
        return self if not self.at_least or wait == self.wait else replace(self, wait=wait)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, without what is not asked for; `checked` reads it. `wait` is told beside it, by a ticket."""
        data: dict[str, Any] = {}
        if self.max_age is not None:
            data["max_age"] = self.max_age
        if self.at_least:
            data["at_least"] = {split: list(place) for split, place in self.at_least.items()}
        for name in ("consistent", "once"):
            if getattr(self, name):
                data[name] = True
        for name in ("snapshot", "cut"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        return data


LATEST = Freshness()


class Asked(TypedDict, total=False):
    """The keyword arguments by which a reader says how fresh an answer must be; `checked` reads them."""

    max_age: float | None
    at_least: Mapping[str, int | tuple[int, int] | Place] | None
    consistent: bool
    snapshot: int | None
    wait: float | None


def refined(base: Freshness, asked: Asked) -> Freshness:
    """`base` with what is `asked` besides. Raises InvalidFlow if the two contradict each other."""
    if not asked:
        return base
    given: dict[str, Any] = {
        name: getattr(base, name) for name in ("max_age", "at_least", "consistent", "snapshot", "cut", "once", "wait")
    }
    return checked(**(given | asked))


def checked(
    max_age: object = None,
    at_least: object = None,
    consistent: object = False,
    snapshot: object = None,
    cut: object = None,
    once: object = False,
    wait: object = None,
) -> Freshness:
    """A `Freshness` from what a person or a client gave. Places are ``(offset, floors)``, or plain offsets. Raises InvalidFlow."""
    if not isinstance(consistent, bool):
        raise InvalidFlow("consistent is True or False", got=repr(consistent))
    numbers = {}
    for name, value in (("snapshot", snapshot), ("cut", cut)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63):
            raise InvalidFlow(f"{name} is the number of one, not negative", got=repr(value))
        numbers[name] = value
    if not isinstance(once, bool) or (once and cut is None):
        raise InvalidFlow("once is True only for a cut that was made for one read", got=repr(once))
    fresh = Freshness(_age(max_age), _places(at_least), consistent, numbers["snapshot"], numbers["cut"], once)
    fresh = fresh.within(wait_of(wait))
    fixed = [name for name in ("consistent", "snapshot", "cut") if getattr(fresh, name) not in (None, False)]
    if len(fixed) > 1 or (fixed and fixed != ["consistent"] and (fresh.at_least or fresh.max_age is not None)):
        message = "a snapshot has a position of its own; ask for it alone, or for a fresh one with consistent=True"
        raise InvalidFlow(message, got=fixed)
    return fresh


def missing(at_least: Mapping[str, Place], position: Mapping[str, Place]) -> dict[str, tuple[Place, Place | None]]:
    """The splits in which `position` is before what was asked for: (asked, reached), None for a split that is not known yet."""
    return {
        split: (place, reached)
        for split, place in at_least.items()
        if (reached := _reached(position, split)) is None or reached < place
    }


def behind(partition: int | None, lacking: Mapping[str, tuple[Place, Place | None]], waited: float) -> Behind:
    """The refusal that `missing` makes necessary; `partition` is None for a cut of all."""
    split, (asked, reached) = next(iter(sorted(lacking.items())))
    message = "the state has not come as far as was asked for; try again, or wait for longer"
    if reached is None:
        message = "this split is not known here (yet); look for its name in the position of an answer"
    facts: dict[str, Any] = {} if partition is None else {"partition": partition}
    facts |= {"split": split, "asked": list(asked)}
    if reached is not None:
        facts |= {"reached": list(reached), "missed_by": asked.offset - reached.offset}
    return Behind(message, retry_after=0.1 if reached is not None else 1.0, **facts, waited=round(waited, 3))


def _reached(position: Mapping[str, Place], split: str) -> Place | None:
    exact = position.get(split)
    if exact is not None:
        return exact
    named = [place for name, place in list(position.items()) if name.endswith("/" + split)]
    return named[0] if len(named) == 1 else None


def wait_of(value: object) -> float | None:
    """Seconds that somebody is ready to wait, if it was said. Raises InvalidFlow."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LONGEST_WAIT:
        raise InvalidFlow(f"'wait' is a number of seconds, at most {LONGEST_WAIT:.0f}")
    return float(value)


def _age(max_age: object) -> float | None:
    if max_age is None:
        return None
    if not isinstance(max_age, int | float) or isinstance(max_age, bool) or not max_age >= 0:
        message = (
            "max_age is a number of seconds, 0 for live answers alone, or None for what was saved last, however old"
        )
        raise InvalidFlow(message, got=repr(max_age))
    return float(max_age) if max_age <= LONGEST_AGE else None


def _places(at_least: object) -> dict[str, Place]:
    if at_least is None:
        return {}
    if not isinstance(at_least, Mapping) or len(at_least) > MAX_SPLITS:
        raise InvalidFlow("at_least maps splits to the offset up to which they must be applied, like {'topic/0': 17}")
    places = {}
    for split, place in at_least.items():
        given = [place] if isinstance(place, int) and not isinstance(place, bool) else place
        plain = isinstance(given, list | tuple) and 1 <= len(given) <= 2
        if (
            not isinstance(split, str)
            or not plain
            or not all(type(each) is int and 0 <= each < 2**63 for each in given)
        ):
            message = "at_least maps splits to the offset up to which they must be applied, like {'topic/0': 17}"
            raise InvalidFlow(message, split=str(split)[:100], got=repr(place)[:100])
        places[split] = Place(*given)
    return places
