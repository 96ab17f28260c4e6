"""The journal: what was appended is there, whatever happened since."""

from __future__ import annotations

from pathlib import Path

import pytest

from outcomes.journal import Journal
from outcomes.table import Row
from protocol.errors import MethodError


def test_rows_come_back_as_they_were_appended(tmp_path: Path) -> None:
    """Unknown numbers stay unknown, log-probabilities stay a tuple; the later of two rows counts."""
    path = tmp_path / "deep" / "j.jsonl"
    row = Row("q", "ask", "c", "m", 1.0, response="a\nb", logprobs=(-0.5, -1.0))
    with Journal(path) as journal:
        journal.append(Row("q", "ask", "c", "m", 0.0))
        journal.append(row)
        journal.append(Row("q", "ask", "c", "other"))
    with Journal(path) as journal:
        assert repr(journal.rows["q", "m"]) == repr(row)
        assert list(journal.rows) == [("q", "m"), ("q", "other")]


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    """A second collection into the same journal is refused, and the file is free again after the first."""
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append(Row("q", "ask", "c", "m", 1.0))
        with pytest.raises(MethodError, match="Another collection"), Journal(path):
            pass
    with Journal(path) as journal:
        assert list(journal.rows) == [("q", "m")]


@pytest.mark.parametrize("content", [b"not json\n", b'{"strange": 1}\n', b"3\n"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no journal is neither read as one nor changed."""
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(MethodError, match="not a journal"), Journal(path):
        pass
    assert path.read_bytes() == content
