"""``flowstate get``, ``tail`` and ``views``: what needs no more than a reader of the job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flowstate.clock import SystemClock
from flowstate.command.ask import say
from flowstate.command.place import Place, key_of
from flowstate.command.rows import table_text, write_rows
from flowstate.view.answer import Answer
from flowstate.view.freshness import Freshness


def get(place: Place, view: str, key: Sequence[str], fresh: Freshness, kind: str) -> int:
    """0, or 1 if there is no such key. Raises Unavailable, InvalidFlow."""
    with place.opened() as (reader, _):
        found = reader.lookup(view, key_of(reader.info(view), key), fresh=fresh)
        if (answer := Answer.of(found.schema)) is not None:
            tell_saved({view: answer})
        if not found.num_rows:
            say(f"view {view!r} has no key {' '.join(key)}")
            return 1
        write_rows(kind, found.schema.remove_metadata(), found.replace_schema_metadata().to_batches())
    return 0


def views(place: Place) -> None:
    """A line per column, as text. Raises Unavailable, InvalidFlow."""
    lines = []
    with place.opened() as (reader, _):
        for name in reader.views():
            info = reader.info(name)
            for each in info.schema:
                role = "" if each.name not in info.keys else "key" if each.name in info.routing_keys else "key, window"
                lines.append([name, each.name, str(each.type), role])
    table_text(["view", "column", "type", "key"], lines)


def tell_saved(answers: Mapping[str, Answer]) -> None:
    """To standard error: what was not read live, and how old that is."""
    for each in saved_parts(answers):
        say(each)


def saved_parts(answers: Mapping[str, Answer]) -> Iterator[str]:
    """A sentence for each view of which a part was not read live."""
    now = SystemClock().wall()
    for view, answer in answers.items():
        parts = [each for each in answer.parts if each.origin != "live"]
        if parts:
            numbers = ", ".join(str(each) for each in sorted(each.partition for each in parts))
            age = max(0.0, now - min(each.as_of for each in parts))
            named = f"partition {numbers}" if len(parts) == 1 else f"partitions {numbers}"
            yield f"view {view!r}: {named} read from saved state, {age:.1f} s old"
