"""What an answer says of itself, as JSON."""

from __future__ import annotations

import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from flowstate.plan.position import FOREVER, NEVER, Place
from flowstate.view.answer import Answer, PartitionAnswer, answer_of_data

NAMES = st.text(max_size=8)
POSITIONS = st.dictionaries(NAMES, st.builds(Place, st.integers(0, 2**62), st.integers(0, 9)), max_size=3)
PARTS = st.builds(
    PartitionAnswer,
    st.integers(0, 99),
    st.integers(0, 99),
    POSITIONS,
    st.integers(NEVER, FOREVER),
    st.floats(0, 4e9) | st.integers(0, 9).map(float),
    st.sampled_from(["live", "saved"]),
    st.none() | st.integers(0, 99),
)
ANSWERS = st.builds(Answer, NAMES, NAMES, st.lists(PARTS, max_size=3).map(tuple), st.booleans())


@given(ANSWERS)
def test_its_json_is_that_of_its_plain_data_and_comes_back(answer: Answer) -> None:
    assert json.loads(answer.to_json()) == json.loads(json.dumps(answer.to_data()))
    assert answer_of_data(json.loads(answer.to_json())) == answer
    schema = pa.schema([pa.field("key", pa.string())], {b"other": b"stays"})
    assert Answer.of(answer.attach(schema)) == answer
    assert answer.attach(schema).metadata[b"other"] == b"stays"
