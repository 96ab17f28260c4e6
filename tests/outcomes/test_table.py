"""The outcome table: long and wide, on disk and in memory, and its splits."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes.table import OutcomeTable, Row, query_id, read_table, split, split_mask, write_table
from protocol.errors import MethodError


def _rows() -> list[Row]:
    long = Row("q1", "What is 1 + 1?", "sums", "b", 1.0, 2e-6, 9, 3, 0.25, "It is 2.", (-0.1, -0.3))
    return [
        long,
        Row("q1", "What is 1 + 1?", "sums", "a", 0.0, response="3"),
        Row("q2", "Say hi.", "talk", "a", 1.0, 1e-6, 5, 1, 0.5, "hi", ()),
    ]


def test_matrices_hold_what_rows_say_and_nan_elsewhere() -> None:
    """A cell without a row is NaN, never zero; an unknown value in a row is NaN too."""
    table = OutcomeTable.of(_rows())
    assert table.models == ("b", "a")
    assert np.array_equal(table.score, [[1, 0], [np.nan, 1]], equal_nan=True)
    assert np.array_equal(table.cost_usd, [[2e-6, np.nan], [np.nan, 1e-6]], equal_nan=True)
    assert table.response[1, 0] is None
    assert np.allclose(table.mean_logprob, [[-0.2, np.nan], [np.nan, np.nan]], equal_nan=True)


def test_later_rows_replace_earlier_ones() -> None:
    """Of two rows for one query and model the later counts, as in a journal."""
    again = Row("q1", "What is 1 + 1?", "sums", "b", 0.5)
    assert OutcomeTable.of([*_rows(), again]).score[0, 0] == 0.5


def test_parquet_round_trip(tmp_path: Path) -> None:
    """What is written is read back, token log-probabilities and gaps included."""
    table = OutcomeTable.of(_rows())
    write_table(table, tmp_path / "deep" / "table.parquet")
    back = read_table(tmp_path / "deep" / "table.parquet")
    assert repr(list(back.rows())) == repr(list(table.rows()))  # NaN included
    assert back.digest() == table.digest()


def test_folder_layout_is_read(tmp_path: Path) -> None:
    """A folder of gzipped queries and outcomes, JSON lines or CSV, is one table; parts are joined."""
    queries = [{"query_id": f"x/{i}", "query": f"ask {i}", "benchmark": "x"} for i in range(2)]
    with gzip.open(tmp_path / "queries.jsonl.gz", "wb") as file:
        file.write(b"\n".join(map(orjson.dumps, queries)))
    with gzip.open(tmp_path / "outcomes-01.csv.gz", "wt") as file:
        file.write("query_id,model,score\nx/0,a,0.5\nx/1,a,\n")
    with gzip.open(tmp_path / "outcomes-02.jsonl.gz", "wb") as file:
        file.write(
            orjson.dumps({"query_id": "x/1", "model": "b", "score": 1, "cost_usd": 0.1, "response": "r"})
        )
    table = read_table(tmp_path)
    assert table.query_ids == ("x/0", "x/1")
    assert table.categories == ("x", "x")
    assert np.array_equal(table.score, [[0.5, np.nan], [np.nan, 1]], equal_nan=True)


@pytest.mark.parametrize("content", [None, b"not parquet"])
def test_unreadable_tables_say_so(tmp_path: Path, content: bytes | None) -> None:
    """A missing file, or one that is no parquet, is a `MethodError` with its path."""
    path = tmp_path / "table.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MethodError, match=r"table\.parquet"):
        read_table(path)


def test_copies_of_a_question_never_straddle_a_split() -> None:
    """Case, white space and Unicode form aside, equal texts fall on the same side, whatever surrounds
    them."""
    texts = [f"Question number {i}?" for i in range(400)]
    copies = [f"  QUESTION  number {i}?\n" for i in range(400)]
    mask = split_mask(texts + copies, 0.3, "test")
    assert np.array_equal(mask[:400], mask[400:])
    assert np.array_equal(mask[:10], split_mask(texts[:10], 0.3, "test"))
    assert 0.22 < mask.mean() < 0.38


def test_splits_of_different_salt_are_independent() -> None:
    """A split by another salt cuts each part in the same share."""
    texts = [f"Question number {i}?" for i in range(2000)]
    test, calibration = split_mask(texts, 0.3, "test"), split_mask(texts, 0.5, "calibration")
    assert abs(calibration[test].mean() - calibration[~test].mean()) < 0.08


def test_split_parts_make_the_whole() -> None:
    """The two parts share no query and miss none; embeddings go along."""
    texts = [f"Question number {i}?" for i in range(50)]
    vectors = np.arange(50, dtype=np.float32)[:, None]
    table = OutcomeTable.of_matrices(["a"], texts, np.ones((50, 1)), embeddings=vectors)
    rest, held_out = split(table)
    assert sorted((*rest.query_ids, *held_out.query_ids)) == sorted(table.query_ids)
    both = np.concatenate([rest.queries.embeddings, held_out.queries.embeddings])
    assert sorted(both[:, 0]) == list(range(50))


def test_only_orders_columns_and_names_a_missing_model() -> None:
    """`only` gives the columns asked for in that order, and says which models there are when one is not."""
    table = OutcomeTable.of(_rows()).only(("a", "b"))
    assert np.array_equal(table.score, [[0, 1], [1, np.nan]], equal_nan=True)
    with pytest.raises(MethodError, match="'c'; it has a, b"):
        table.only(("c",))


def test_digest_is_of_content_not_order() -> None:
    """Reordering rows or columns keeps the digest; another score changes it."""
    table = OutcomeTable.of(_rows())
    assert table.digest() == table.take([1, 0]).only(("a", "b")).digest()
    assert (
        table.digest()
        != OutcomeTable.of([Row("q1", "What is 1 + 1?", "sums", "b", 0.0), *_rows()[1:]]).digest()
    )


def test_query_ids_are_hashes_of_the_text() -> None:
    """The same question has the same id in every table."""
    assert query_id("  What is 2 + 2? ") == query_id("What is 2 + 2?") != query_id("What is 2 + 3?")
