"""Changes of files are noticed, however they come about."""

from __future__ import annotations

from pathlib import Path

from gateway.fingerprint import digest, glance


def test_contents_count(tmp_path: Path) -> None:
    """The digest is of names and contents: of files, and of folders with all that is in them."""
    folder = tmp_path / "artefact"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("x")
    first = digest(folder)
    assert digest(folder) == first
    (folder / "deep" / "a").write_text("y")
    second = digest(folder)
    assert second != first
    (folder / "deep" / "a").rename(folder / "deep" / "b")
    assert digest(folder) not in (first, second)
    assert digest(tmp_path / "nope") == digest(tmp_path / "nope")


def test_a_glance_notices(tmp_path: Path) -> None:
    """Writing, replacing by a rename, moving a link, removing and making are all noticed; nothing else is."""
    (tmp_path / "v1").write_text("one")
    (tmp_path / "v2").write_text("two")
    link = tmp_path / "link"
    link.symlink_to("v1")
    seen = [glance(link)]
    assert glance(link) == seen[0]

    def moved() -> None:
        (tmp_path / "new").symlink_to("v2")
        (tmp_path / "new").rename(link)

    def replaced() -> None:
        (tmp_path / "v3").write_text("two")
        (tmp_path / "v3").rename(tmp_path / "v2")

    for change in (moved, replaced, (tmp_path / "v2").unlink, lambda: (tmp_path / "v2").write_text("back")):
        change()
        assert glance(link) not in seen
        seen.append(glance(link))
