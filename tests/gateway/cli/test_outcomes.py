"""`chorus outcomes`: tables described, merged, brought in."""

from __future__ import annotations

from pathlib import Path

from outcomes.table import read_table


def test_import_describe_merge(chorus, tmp_path: Path) -> None:
    """A CSV becomes a table that is described; merging it with a log of the same question joins their models."""
    csv, log = tmp_path / "a.csv", tmp_path / "b.jsonl"
    csv.write_text("prompt,eval_name,m,n\nwhy?,t,1,0\nhow?,t,,0.5\n")
    log.write_text(
        '{"model": "p", "messages": [{"role": "user", "content": "why?"}], "response_cost": 0.25}\n'
    )
    one, two, all = (tmp_path / f"{name}.parquet" for name in ("one", "two", "all"))
    status, out, _ = chorus("outcomes", "import", csv, "--out", one)
    assert status == 0
    assert "2 queries, 2 models" in out
    assert "1 of 2" in out
    assert chorus("outcomes", "import", log, "--format", "log", "--out", two)[0] == 0
    status, out, _ = chorus("outcomes", "merge", one, two, "--out", all)
    assert (status, "2 queries, 3 models" in out) == (0, True)
    assert read_table(all).models == ("m", "n", "p")
    status, out, _ = chorus("outcomes", "describe", all)
    assert status == 0
    assert "0.25" in out
    assert "unknown" in out, "a model without scores has none"
    assert "oracle: 0.750" in out


def test_wrong_files_are_told(chorus, tmp_path: Path) -> None:
    """A missing file or an unknown format is status 2, a file that cannot be read is status 1."""
    assert chorus("outcomes", "import", tmp_path / "no.csv", "--out", tmp_path / "x.parquet")[0] == 2
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    assert chorus("outcomes", "import", bad, "--format", "xml", "--out", tmp_path / "x.parquet")[0] == 2
    status, _, told = chorus("outcomes", "import", bad, "--out", tmp_path / "x.parquet")
    assert status == 1
    assert "line 1" in told
