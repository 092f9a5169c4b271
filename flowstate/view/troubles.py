"""What is wrong with a job, in sentences: the same words wherever they are read (``flowstate status``, the page in Dask's dashboard)."""

from __future__ import annotations

from collections.abc import Iterator

#: Seconds that rows wait for a sink before that is told as trouble.
WAITING = 60.0
DOWN = "the job is down: no partition is live"


def away(partition: int, why: str, saved: float | None) -> str:
    """Of a partition that is not live. `saved`: how many seconds ago what answers for it was saved; None if nothing does."""
    said = "is away, and nothing that it saved can be read from here"
    if saved is not None:
        said = f"is away; what it saved {saved:.0f} s ago answers"
    return f"partition {partition} {said}: {why}"


def late(partition: int, split: str, missing: int, seconds: float) -> str:
    """Of a live partition that is `missing` offsets before the place in `split` where another one was `seconds` ago."""
    return f"partition {partition} is late: in split {split} it is {missing} before where another one was {seconds:.0f} s ago"


def sink(
    name: str, partition: int, *, problem: str | None, waiting: float | None, rejected: int | None
) -> Iterator[str]:
    """Of a sink that does not take its rows; none if it does. `name`: its number, kind, view and place; `waiting`: seconds."""
    place = f"sink {name} of partition {partition}"
    if problem:
        yield f"{place}: {problem}"
    elif (waiting or 0.0) > WAITING:
        yield f"{place} has not taken what waits for it for {waiting:.0f} s"
    if rejected:
        yield f"{place}: {rejected} rows were refused for good; job.rejected() has them"


def behind(split: str, lag: int, rate: float) -> str:
    """Of a split of which `lag` offsets are not applied everywhere yet, `rate` more each second."""
    if rate <= 0:
        return f"split {split} is behind its log by {lag}, and nothing of it is read just now"
    return f"split {split} is behind its log by {lag}; at {rate:.0f} a second it needs {lag / rate:.0f} s"
