"""A condition that fixes the key is a lookup: the rows come by the partitions' index, over an exchange that is open already.

Where a filter that DuckDB pushes down says that the routing keys equal some values and nothing else, which is the usual point query, that
is seen by building the same condition from the values and comparing the two. Any other filter is read by `flowstate_flight.key_filter`;
if that finds few keys, their rows are looked up, and the filter is applied to them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import permutations
from operator import and_

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.view.directory import ViewInfo
from flowstate_flight.pushed_filter import PushedFilter

#: Keys that are looked up; of more, their owners are asked for a scan.
MOST_KEYS = 100
#: Routing keys whose order in a condition is guessed.
_FEW = 3


@dataclass(frozen=True)
class Keyed:
    """The only `keys` whose rows a filter lets through; `exact` if it lets all of these through."""

    keys: pa.RecordBatch
    exact: bool


def keyed(filter: pc.Expression, info: ViewInfo) -> Keyed | None:
    """None if there are no such keys, too many, or such that the index finds others than a comparison would (floats, null)."""
    names = list(info.routing_keys)
    if not names or names != list(info.keys[: len(names)]):
        return None
    kinds = [info.schema.field(name).type for name in names]
    if any(pa.types.is_floating(kind) for kind in kinds):
        return None
    if (key := _only(filter, names, kinds)) is not None:
        return Keyed(key, True)
    text = str(filter)
    if not all(name in text for name in names):
        return None
    keys = PushedFilter.of(filter, info.schema).keys(info)
    if keys is None or not 0 < keys.num_rows <= MOST_KEYS or any(each.null_count for each in keys.columns):
        return None
    return Keyed(keys, False)


def _only(filter: pc.Expression, names: list[str], kinds: list[pa.DataType]) -> pa.RecordBatch | None:
    """The key, if the filter says that its columns equal the values of one, and no more."""
    values = [each for each in _literals(filter) if each.null_count == 0]
    if len(values) != len(names) or len(names) > _FEW:
        return None
    for order in permutations(range(len(names))):
        said = [(names[at], value) for at, value in zip(order, values, strict=True)]
        if any(value.type != kinds[at] for at, value in zip(order, values, strict=True)):
            continue
        if filter.equals(reduce(and_, (pc.field(name) == value[0] for name, value in said))):
            given = dict(said)
            return pa.RecordBatch.from_arrays([given[name] for name in names], names=names)
    return None


def _literals(filter: pc.Expression) -> Iterator[pa.Array]:
    """The values in a condition, in their order, each as an array of one; none if Arrow has come to pickle them in another way."""
    try:
        (pickled,) = filter.__reduce__()[1]
        with pa.ipc.open_file(pickled) as reader:
            yield from reader.get_batch(0).columns
    except (pa.ArrowException, ValueError, TypeError, OSError, AttributeError):
        return
