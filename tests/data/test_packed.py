"""Packed rows come out as they went in, from any number of blocks, in a few bytes a token."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN_ID
from llava_tools.data.packed import Growing, PackedRows, RowData, TokenType, token_type

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TOKENS = st.lists(
    st.tuples(st.integers(0, 60_000), st.booleans()) | st.just((IMAGE_TOKEN_ID, False)), max_size=20
)


@st.composite
def row_data(draw: st.DrawFn) -> RowData:
    """Draw a row with ids, images and labels."""
    tokens = draw(TOKENS)
    return RowData(
        number=draw(st.integers(1, 2**31 - 1)),
        id=draw(NAMES),
        images=tuple(draw(st.lists(NAMES.filter(bool), max_size=3))),
        input_ids=[i for i, _ in tokens],
        labels=[i if trained else IGNORE_ID for i, trained in tokens],
    )


@settings(max_examples=80, deadline=None)
@given(
    blocks=st.lists(st.lists(row_data(), max_size=4), max_size=4),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_rows_come_out_as_they_went_in(blocks: list[list[RowData]], dtype: TokenType) -> None:
    growing = Growing(dtype)
    for block in blocks:
        growing.add(PackedRows.pack(block, dtype))
    packed = growing.finish()
    rows = [row for block in blocks for row in block]
    assert len(packed) == len(rows)
    for i, row in enumerate(rows):
        ids, labels = packed.ids_and_labels(i)
        assert (ids.tolist(), labels.tolist()) == (row.input_ids, row.labels)
        assert ids.dtype == labels.dtype == np.int64
        assert (packed.id(i), packed.images(i)) == (row.id, list(row.images))
    assert packed.numbers.tolist() == [row.number for row in rows]
    signed = [len(row.input_ids) * (1 if row.images else -1) for row in rows]
    assert packed.signed_lengths().tolist() == signed
    trained = sum(label != IGNORE_ID for row in rows for label in row.labels)
    assert packed.count_trained() == trained


@pytest.mark.parametrize(("largest", "bytes_a_token"), [(65_534, 2.5), (65_535, 4.5)])
def test_a_token_takes_a_few_bytes(largest: int, bytes_a_token: float) -> None:
    dtype = token_type(largest)
    ids = [0, IMAGE_TOKEN_ID, largest] * 100
    rows = [RowData(i, str(i), ("a/b/c/000000000001.jpg",), ids, ids) for i in range(50)]
    packed = PackedRows.pack(rows, dtype)
    total = sum(getattr(packed, field.name).nbytes for field in fields(packed))
    assert total < bytes_a_token * 300 * 50
    assert packed.ids_and_labels(49)[0].tolist() == ids
