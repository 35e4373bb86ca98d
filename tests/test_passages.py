"""Passages cover their document, overlap as asked, and the table gives back what was cut or says that it is damaged."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoders import tiny_embedder
from tttnn.datastore.passages import Passage, PassageTable, byte_spans, cut_passages
from tttnn.errors import IndexCorruptError

EMBEDDER = tiny_embedder()


@given(st.text(max_size=400), st.integers(2, 60), st.data())
@settings(max_examples=150, deadline=None)
def test_passages_cover_the_text_and_overlap(text: str, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    tokens = EMBEDDER.token_spans(text)
    spans = cut_passages(text, tokens, length=length, overlap=overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (_, end), (begin, _) in pairwise(spans):
        assert begin <= end
    raw = text.encode("utf-8", "surrogatepass")
    pieces = byte_spans(text, spans)
    for (begin, end), (first, last) in zip(spans, pieces, strict=True):
        assert raw[first:last].decode("utf-8", "surrogatepass") == text[begin:end]
    if len(tokens) > length:
        starts = [int(np.searchsorted(tokens[:, 0], begin)) for begin, _ in spans[1:]]
        steps = np.diff([0, *starts])
        # A character of several tokens may hold the cut, which then lies at its beginning.
        assert (np.abs(steps - (length - overlap)) <= 3).all()


def test_one_passage_where_all_fits() -> None:
    assert cut_passages("", np.zeros((0, 2), np.int64), length=4, overlap=0) == [(0, 0)]
    assert cut_passages("  a b  ", EMBEDDER.token_spans("  a b  "), length=62, overlap=5) == [(0, 7)]


def test_overlap_must_be_less_than_the_length() -> None:
    with pytest.raises(ValueError, match="passage_overlap must be between 0 and 3"):
        cut_passages("abcdef", EMBEDDER.token_spans("abcdef"), length=4, overlap=4)


def test_long_text_is_tokenised_in_pieces() -> None:
    text = "word and another, " * 10_000
    spans = EMBEDDER.token_spans(text)
    assert len(spans) == len(text)  # one token a byte
    assert spans[-1].tolist() == [len(text) - 1, len(text)]
    unbroken = "x" * 150_000
    assert len(EMBEDDER.token_spans(unbroken)) == len(unbroken)


def test_table_round_trip(tmp_path: Path) -> None:
    rows = [(0, 0, 10), (0, 5, 20), (2, 0, 0), (3, 1, 4_000_000_000)]
    path = tmp_path / "passages.bin"
    described = PassageTable.of([[(0, 10), (5, 20)], [], [(0, 0)], [(1, 4_000_000_000)]]).save(path)
    table = PassageTable.open(path, described)
    assert len(table) == 4
    assert [table[i] for i in range(4)] == [Passage(*row) for row in rows]
    assert table.documents.tolist() == [0, 0, 2, 3]
    with pytest.raises(IndexError):
        table[4]


def test_every_flipped_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "passages.bin"
    described = PassageTable.of([[(0, 10)], [(0, 7)]]).save(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(IndexCorruptError, match=r"passages\.bin"):
            PassageTable.open(path, described)
    for size in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(IndexCorruptError, match="holds"):
            PassageTable.open(path, described)
        with pytest.raises(IndexCorruptError):
            PassageTable.open(path)
