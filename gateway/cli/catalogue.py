"""`chorus methods`: the registry, for people, programs and `docs/METHODS.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from protocol.methods import Method

__all__ = ["as_json", "as_markdown", "methods"]

TAXONOMY = {
    "a1": "before inference, router trained before use",
    "a2": "before inference, router that needs no training",
    "b1": "during inference, token level",
    "b2": "during inference, span level",
    "b3": "during inference, step level",
    "c1": "after inference, in parallel",
    "c2": "after inference, in sequence (cascade)",
}

_HEAD = """\
# Methods

Generated from the registry by `make docs` (`chorus methods --markdown`); do not edit.

Each method is one module with a `METHOD` record and a docstring that is the bridge to its paper. *Evidence*
is what a test of this repository shows; where it is empty, or something is *not verified*, nothing is
claimed.

"""


def methods(
    json: Annotated[bool, typer.Option("--json", help="As JSON, one array.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/METHODS.md.")] = False,
) -> None:
    """List the published methods that Chorus has, what each needs, and what shows that it is faithful.

    Examples:
        chorus methods

        chorus methods --json | jq '.[].id'
    """
    from protocol.methods import methods as registered

    found = list(registered())
    if json:
        import orjson

        typer.echo(orjson.dumps(as_json(found), option=orjson.OPT_INDENT_2).decode())
    elif markdown:
        typer.echo(as_markdown(found), nl=False)
    else:
        _print(found)


def as_json(found: Iterable[Method]) -> list[dict[str, Any]]:
    """The records as JSON values."""
    return [
        {
            "id": method.id,
            "title": method.title,
            "year": method.year,
            "paper": method.paper,
            "taxonomy": method.taxonomy,
            "contract": method.contract,
            "serving": method.serving,
            "module": method.module,
            "aliases": list(method.aliases),
            "needs": sorted(method.needs),
            "evidence": [{"kind": e.kind, "what": e.what, "test": e.test} for e in method.evidence],
            "unverified": method.unverified,
        }
        for method in found
    ]


def as_markdown(found: Iterable[Method]) -> str:
    """The whole of `docs/METHODS.md`."""
    found = list(found)
    lines = ["| id | paper | where it works | needs |", "|---|---|---|---|", *map(_row, found)]
    return _HEAD + "\n".join(lines) + "\n\n" + "\n".join(map(_section, found))


def _row(method: Method) -> str:
    where = f"{method.taxonomy}: {TAXONOMY[method.taxonomy]}"
    paper = f"{method.title} ({method.year})"
    return f"| [`{method.id}`](#{method.id}) | {paper} | {where} | {_words(method.needs)} |"


def _section(method: Method) -> str:
    lines = [f"## {method.id}", "", f"{method.title} ({method.year}), {_link(method.paper)}.", ""]
    use = "serving" if method.serving else "offline"
    facts = {
        "Module": f"`{method.module}` (`{method.implementation}`)",
        "Kind": f"{method.contract}, {use}; {method.taxonomy}, {TAXONOMY[method.taxonomy]}",
        "Needs": _words(method.needs),
        "Aliases": ", ".join(f"`{alias}`" for alias in method.aliases),
        "Not verified": method.unverified,
    }
    lines += [f"- {name}: {fact}" for name, fact in facts.items() if fact]
    if method.evidence:
        lines.append("- Evidence:")
        lines += [f"  - {e.kind}: {e.what} (`{e.test}`)" for e in method.evidence]
    return "\n".join(lines) + "\n"


def _link(paper: str) -> str:
    """A Markdown link for an arXiv number or an address; other references as they are."""
    if found := re.fullmatch(r"arXiv[: ]\s*(\d{4}\.\d{4,5})", paper):
        return f"[arXiv {found[1]}](https://arxiv.org/abs/{found[1]})"
    return f"<{paper}>" if paper.startswith("https://") else paper


def _words(needs: Iterable[str]) -> str:
    return ", ".join(sorted(needs))


def _print(found: Iterable[Method]) -> None:
    from rich.table import Table

    from gateway.cli.tables import print_table

    table = Table("id", "title", "year", "taxonomy", "needs", "evidence", box=None, pad_edge=False)
    for method in found:
        table.add_row(
            method.id,
            method.title,
            str(method.year),
            method.taxonomy,
            _words(method.needs),
            str(len(method.evidence)),
        )
    print_table(table)
