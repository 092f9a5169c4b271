"""What the server says of itself and of its SQL (`CommandGetSqlInfo`), by the codes of FlightSql.proto.

The JDBC driver reads every one of these codes, and fails on one that is missing, of another kind, or unknown to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

TEXT, TRUTH, NUMBER, MASK, TEXTS, MAP = range(6)  # places in the union
UNION = pa.dense_union(
    [
        pa.field("string_value", pa.string(), False),
        pa.field("bool_value", pa.bool_(), False),
        pa.field("bigint_value", pa.int64(), False),
        pa.field("int32_bitmask", pa.int32(), False),
        pa.field("string_list", pa.list_(pa.string()), False),
        pa.field("int32_to_int32_list_map", pa.map_(pa.int32(), pa.list_(pa.int32())), False),
    ]
)
SCHEMA = pa.schema([pa.field("info_name", pa.uint32(), False), pa.field("value", UNION, False)])

_TRUE = (3, 4, 9, 506, 515, 516, 518, 519, 520, 521, 523, 524, 532, 539)
_FALSE = (5, 10, 11, 500, 501, 502, 527, 536, 537, 556, 563, 565, 566, 572, 573, 574, 575, 576)
_INFO: dict[int, tuple[int, Any]] = {
    0: (TEXT, "flowstate"),
    2: (TEXT, pa.__version__),
    **dict.fromkeys(_TRUE, (TRUTH, True)),
    **dict.fromkeys(_FALSE, (TRUTH, False)),
    8: (MASK, 0),  # no transactions
    100: (MASK, 0),
    101: (MASK, 0),
    503: (MASK, 1),  # identifiers are not case sensitive
    504: (TEXT, '"'),
    505: (MASK, 1),
    507: (MASK, 3),
    508: (TEXTS, ["QUALIFY", "PIVOT", "ASOF"]),
    509: (TEXTS, ["abs", "ceil", "floor", "round", "sqrt"]),
    510: (TEXTS, ["concat", "length", "lower", "replace", "substring", "trim", "upper"]),
    511: (TEXTS, ["version"]),
    512: (TEXTS, ["date_trunc", "extract", "now"]),
    513: (TEXT, "\\"),
    514: (TEXT, ""),
    517: (MAP, [(7, [0, 19])]),
    522: (MASK, 3),
    525: (MASK, 7),  # minimum, core and extended grammar
    526: (MASK, 1),
    528: (MASK, 6),
    529: (TEXT, "schema"),
    530: (TEXT, "procedure"),
    531: (TEXT, "catalog"),
    533: (MASK, 0),
    534: (MASK, 0),
    535: (MASK, 0),
    538: (MASK, 15),
    540: (MASK, 3),
    **dict.fromkeys((*range(541, 556), *range(557, 563)), (NUMBER, 0)),  # limits: none known
    564: (MASK, 1),
    567: (MASK, 2),
    568: (MASK, 2),
    569: (MASK, 2),
    570: (MASK, 0),
    571: (MASK, 0),
}


def sql_info(codes: Sequence[int], version: str) -> pa.Table:
    """The values of some codes; of all for none. Codes that are not known are left out."""
    info = {**_INFO, 1: (TEXT, version)}
    wanted = [code for code in codes if code in info] if codes else sorted(info)
    values: list[list[Any]] = [[] for _ in range(6)]
    kinds, offsets = [], []
    for code in wanted:
        kind, value = info[code]
        kinds.append(kind)
        offsets.append(len(values[kind]))
        values[kind].append(value)
    children = [pa.array(each, UNION.field(kind).type) for kind, each in enumerate(values)]
    buffers = [None, pa.array(kinds, pa.int8()).buffers()[1], pa.array(offsets, pa.int32()).buffers()[1]]
    union = pa.UnionArray.from_buffers(UNION, len(wanted), buffers, children=children)
    return pa.Table.from_arrays([pa.array(wanted, pa.uint32()), union], schema=SCHEMA)
