"""What a failure of a backend says about trying again."""

from __future__ import annotations

from enum import Enum

__all__ = ["Again"]


class Again(Enum):
    """Whom it makes sense to ask after a backend's failure."""

    SAME = "the backend did not do the work: it may be asked again, and so may others"
    ELSEWHERE = "the backend may have done the work, or cannot: only others are asked"
    NEVER = "the request is at fault: nobody is asked again"
