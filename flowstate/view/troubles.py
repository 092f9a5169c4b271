"""What is wrong with a job, in sentences: the same words wherever they are read (``flowstate status``, ``flowstate top``, the page in
Dask's dashboard). Each names the cause as far as it is known, where it is, since when, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

#: Seconds that rows wait for a sink before that is told as trouble.
WAITING = 60.0
DOWN = "the job is down: no partition is live"
START = "start it again, unless somebody does that by himself: it goes on from what it saved last"
UNLED = "the supervisor does not answer; what follows is told by the partitions"
#: Before an error's message: kinds of which the message says what to do. An InternalError is told as one.
_KIND = re.compile(r"^(Unavailable|InvalidFlow|CorruptData|Behind|Moved|Fenced): ")
_RETRY = re.compile(r" retry_after=\S+")
_FOR = re.compile(r" \(for \d+ \w+\)|(?<=\w), for \d+ \w+(\))")
_FACTS = re.compile(r" \(| \w+=")
#: Splits of one sentence that are named.
NAMED = 3


def plain(text: str) -> str:
    """The message of an error, for people: without its class, and when to try again, which is done by itself."""
    return _RETRY.sub("", _KIND.sub("", text))


def timeless(words: str) -> str:
    """A sentence without how long it holds by now."""
    return _FOR.sub(r"\1", words)


def kind_of(text: str) -> str:
    """Without its facts and what is in brackets, so that what several partitions say of one cause is seen to be the same."""
    return _FACTS.split(plain(text), maxsplit=1)[0]


def span(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def some(noun: str, names: Sequence[str]) -> str:
    """At most `NAMED` of them by their names."""
    shown = list(names)
    if len(shown) > NAMED:
        shown = [*shown[:NAMED], f"{len(shown) - NAMED} more"]
    said = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{noun}{'s' * (len(names) > 1)} {said}"


def partitions(numbers: Iterable[int]) -> str:
    return some("partition", [str(each) for each in sorted(set(numbers))])


def away(partition: int, why: str, saved: float | None) -> str:
    """Of a partition that is not live. `saved`: how many seconds ago what answers for it was saved; None if nothing does."""
    said = "is away, and nothing that it saved can be read from here"
    if saved is not None:
        said = f"is away; what it saved {saved:.0f} s ago answers"
    return f"partition {partition} {said}: {plain(why)}"


def problem(what: str, numbers: Sequence[int], text: str, seconds: float) -> str:
    """Of what partitions could not do: `what`, by their own words in `text`, for so many `seconds`."""
    facts = [*([partitions(numbers)] if numbers else []), *([f"for {span(seconds)}"] if seconds >= 1 else [])]
    where = f" ({', '.join(facts)})" if facts else ""
    return f"{what}{where}: {plain(text)}"


def late(partition: int, split: str, missing: int, seconds: float) -> str:
    """Of a live partition that is `missing` offsets before the place in `split` where another one was `seconds` ago."""
    return f"partition {partition} is late: in split {split} it is {missing} before where another one was {seconds:.0f} s ago"


def sinks(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Of sinks that do not take their rows: what is the same as long as it is the same cause, and a sentence. Rows as in
    ``flowstate_sinks``: sink, kind, view, url, partition, problem, waiting_seconds, rejected. Partitions of one cause are told together."""
    said: dict[tuple[str, str], tuple[list[int], str, float]] = {}
    rejected: dict[str, int] = {}
    for each in rows:
        name = f"sink {each['sink']} ({each['kind']} of {each['view']} to {each['url']})"
        waits, text = each["waiting_seconds"] or 0.0, each["problem"] or ""
        if not text and waits > WAITING:
            text = "it has not taken what waits for it, and does not say why; look at it"
        if text:
            numbers, first, longest = said.get((name, kind_of(text)), ([], text, 0.0))
            said[name, kind_of(text)] = [*numbers, each["partition"]], first, max(longest, waits)
        if each["rejected"]:
            rejected[name] = rejected.get(name, 0) + each["rejected"]
    for (name, kind), (numbers, text, seconds) in said.items():
        yield f"{name} {kind}", problem(f"{name} does not take its rows, which wait", numbers, text, seconds)
    for name, count in rejected.items():
        yield f"{name} rejected", f"{name}: {count} rows were refused for good; job.rejected() has them"


def behind(split: str, lag: int, rate: float, grows: float, why: str) -> str:
    """Of a split of which `lag` offsets are not applied everywhere yet: so many are, and so many more come, each second."""
    if rate <= 0:
        return f"split {split} is behind its log by {lag}, and nothing of it is read just now: {why}, is busy with earlier rows, or hangs"
    if grows > 0:
        said = f"split {split} is behind its log by {lag}, and by {grows:.0f} more each second: {why}, at {rate:.0f} a second"
        return f"{said}; a start with more partitions, or less work for each row, keeps up"
    return f"split {split} is behind its log by {lag}; at {rate:.0f} a second it needs {span(lag / rate)}: {why}"


def held(split: str, by: float | None, silent: float | None, idle_after: float | None) -> str:
    """Of the split that keeps the watermark where it is, `by` seconds before all others (None: it has had no row yet), without a row for
    `silent` seconds (None: they come, and are old)."""
    if by is not None and silent is None:
        return (
            f"split {split} holds the watermark back by {span(by)}: its rows are so much older than those of all other splits; no window "
            "closes before it comes up to them"
        )
    since = (
        f"by {span(by)}: nothing came of it for {span(silent or 0.0)}" if by is not None else "it has had no row yet"
    )
    idle = "" if idle_after is None else f", or until it counts as idle (idle_after={span(idle_after)})"
    joined = "" if by is not None else ":"
    return f"split {split} holds the watermark back{joined} {since}; no window closes until something comes{idle}"


def unread(counts: Mapping[str, int], seconds: float) -> str:
    """Of records by split that became dead letters in the last `seconds`."""
    ask = 'flowstate sql WHERE "select reason, count(*) from dead_letters group by all"'
    return f"records that became dead letters: {_counted(counts, seconds)}, counted in no total; why they do not fit: {ask}"


def too_late(view: str, counts: Mapping[str, int], seconds: float) -> str:
    """Of rows by split that came too late for their windows of `view` in the last `seconds`."""
    return (
        f"rows that came too late for their window in view {view}: {_counted(counts, seconds)}, counted in no total; {view}_late has "
        "them, and a longer lateness= or grace= takes such rows"
    )


def _counted(counts: Mapping[str, int], seconds: float) -> str:
    most = sorted(counts, key=lambda each: (-counts[each], each))
    said = [f"{counts[each]:,} of {each}" for each in most[:NAMED]]
    if len(most) > NAMED:
        said.append(f"{sum(counts[each] for each in most[NAMED:]):,} of {len(most) - NAMED} more splits")
    return f"{', '.join(said)} ({f'in the last {span(seconds)}' if seconds >= 1 else 'just now'})"
