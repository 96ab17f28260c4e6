"""What a caller says about caches in `cache-control` (RFC 9111)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Control"]


@dataclass(frozen=True, slots=True)
class Control:
    """`read`: an answer from the cache will do, if it is at most `max_age_s` seconds old; `write`: this one may be
    kept; `only`: no model may be asked."""

    read: bool = True
    write: bool = True
    only: bool = False
    max_age_s: float = float("inf")

    @classmethod
    def parse(cls, header: bytes) -> Control:
        """The header's value; what is unknown, or no number where one should be, is ignored, as the RFC wants."""
        told = dict(_directive(part) for part in header.decode("latin-1").lower().split(","))
        kept = "no-store" not in told
        age = told.get("max-age", "").strip('"')
        max_age_s = float(age) if age.isdecimal() and len(age) < 12 else float("inf")
        return cls(
            read=kept and "no-cache" not in told and max_age_s > 0,
            write=kept,
            only="only-if-cached" in told,
            max_age_s=max_age_s,
        )


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip()
