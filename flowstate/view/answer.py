"""What an answer says about itself: how far, how old, from where.

Every answer is Arrow data whose schema metadata carries the fields of `Answer` under ``flowstate.answer`` (JSON), so that any Arrow
client in any language can read how fresh it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa

from flowstate.plan.position import Place

METADATA_KEY = b"flowstate.answer"
_text = functools.lru_cache(4096)(json.dumps)


class PartitionAnswer(NamedTuple):
    """One partition's part of an answer. `as_of` is Unix time in seconds when the state was current; `watermark` microseconds."""

    partition: int
    epoch: int
    position: Mapping[str, Place]
    watermark: int
    as_of: float
    origin: Literal["live", "saved"]
    snapshot: int | None = None

    def to_json(self) -> str:
        places = [f"{_text(split)}: [{offset}, {floors}]" for split, (offset, floors) in self.position.items()]
        return (
            f'{{"partition": {self.partition}, "epoch": {self.epoch}, "position": {{{", ".join(places)}}}, "watermark": {self.watermark}, '
            f'"as_of": {self.as_of}, "origin": "{self.origin}", "snapshot": {"null" if self.snapshot is None else self.snapshot}}}'
        )


class Answer(NamedTuple):
    """What an answer over some partitions contains. `consistent`: all parts are at one position (a cut)."""

    job: str
    view: str
    parts: tuple[PartitionAnswer, ...]
    consistent: bool = False

    @property
    def watermark(self) -> int:
        return min(part.watermark for part in self.parts)

    @property
    def as_of(self) -> float:
        """Unix time of the oldest part."""
        return min(part.as_of for part in self.parts)

    @property
    def live(self) -> bool:
        """Whether every part is live; else some were read from what was saved last."""
        return all(part.origin == "live" for part in self.parts)

    def attach(self, schema: pa.Schema) -> pa.Schema:
        """`schema` with this answer in its metadata."""
        return schema.with_metadata({**(schema.metadata or {}), METADATA_KEY: self.to_json()})

    def to_json(self) -> str:
        """`to_data` as JSON. By hand, since every lookup pays it: `json.dumps` takes three times as long."""
        parts = ", ".join([each.to_json() for each in self.parts])
        consistent = "true" if self.consistent else "false"
        return (
            f'{{"job": {_text(self.job)}, "view": {_text(self.view)}, "parts": [{parts}], "consistent": {consistent}}}'
        )

    def to_data(self) -> dict[str, object]:
        """Plain data for JSON."""
        parts = [{**part._asdict(), "position": dict(part.position)} for part in self.parts]
        return {"job": self.job, "view": self.view, "parts": parts, "consistent": self.consistent}

    @staticmethod
    def of(schema: pa.Schema) -> Answer | None:
        """The answer that a schema carries, if it does."""
        raw = (schema.metadata or {}).get(METADATA_KEY)
        return None if raw is None else Answer.from_json(raw)

    @staticmethod
    def from_json(text: str | bytes) -> Answer:
        return answer_of_data(json.loads(text))

    @staticmethod
    def merge(answers: Sequence[Answer], *, consistent: bool = False) -> Answer:
        """One answer over the parts of several."""
        first = answers[0]
        return Answer(first.job, first.view, tuple(part for each in answers for part in each.parts), consistent)


def answer_of_data(data: dict[str, object]) -> Answer:
    """An Answer from what `Answer.to_data` gave, also by way of JSON."""
    parts = []
    for part in data["parts"]:  # type: ignore[attr-defined]
        part["position"] = {split: Place(*place) for split, place in part["position"].items()}
        parts.append(PartitionAnswer(**part))
    return Answer(str(data["job"]), str(data["view"]), tuple(parts), bool(data["consistent"]))
