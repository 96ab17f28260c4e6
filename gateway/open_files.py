"""How many files may be open: every connection is one, and common limits are made for people at terminals."""

from __future__ import annotations

import resource

__all__ = ["ENOUGH", "raise_limit", "reach"]

ENOUGH = 8192
"""A connection in and one out for each request in flight, and some."""
MOST = 1_048_576
"""More than Linux itself allows a process by default; a hard limit without bound would not be taken."""


def reach() -> int:
    """How many files a Chorus that is started from here may open: up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    return MOST if soft == resource.RLIM_INFINITY else max(soft, most)


def raise_limit() -> int:
    """Raise the limit as far as it goes without privileges, for this process and its children; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = reach()
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
