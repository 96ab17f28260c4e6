"""Multipart form bodies as bytes: the one field a gateway reads and rewrites, `model`; everything else stays untouched.

Nothing is decoded and no file is spooled; parts are found by searching for the boundary, in time linear in the body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from protocol.errors import BadRequest

__all__ = ["boundary_of", "field", "with_field"]

MAX_PARTS = 256
MAX_PART_HEAD_BYTES = 4096

_BOUNDARY = re.compile(
    r"""multipart/form-data\s*;\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))\s*""", re.IGNORECASE
)
_LETTERS = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_NAME = re.compile(
    rb"""content-disposition:\s*form-data\s*;(?:[^\r\n]*;)?\s*name="([^"\r\n]{0,200})"([^\r\n]*)""",
    re.IGNORECASE,
)


def boundary_of(content_type: str) -> bytes:
    """The boundary of a `content-type` header. Raises `BadRequest` unless it is a proper form's."""
    match = _BOUNDARY.fullmatch(content_type)
    boundary = (match.group(1) or match.group(2)) if match else ""
    if not _LETTERS.fullmatch(boundary):
        raise BadRequest("The body must be multipart/form-data with a boundary.", param=None)
    return boundary.encode("ascii")


def field(body: bytes, boundary: bytes, name: str) -> str | None:
    """The text of the form's field `name`; None when there is none. Raises `BadRequest` for a malformed body or a
    field that stands twice."""
    found = _find(body, boundary, name)
    if found is None:
        return None
    try:
        return body[slice(*found)].decode()
    except UnicodeDecodeError:
        raise BadRequest(f"'{name}' must be text.", param=name) from None


def with_field(body: bytes, boundary: bytes, name: str, value: str) -> bytes:
    """`body` with the field `name` set to `value`; every other byte is kept. Without such a field: `body` itself."""
    found = _find(body, boundary, name)
    if found is None:
        return body
    start, end = found
    return b"".join((body[:start], value.encode(), body[end:]))


def _find(body: bytes, boundary: bytes, name: str) -> tuple[int, int] | None:
    """Where the text of the field `name` stands."""
    found = None
    for head_start, start, end in _parts(body, boundary):
        match = _NAME.search(body, head_start, start)
        if match is None or match.group(1) != name.encode() or b"filename" in match.group(2).lower():
            continue
        if found is not None:
            raise BadRequest(f"'{name}' must stand once in the form.", param=name)
        found = (start, end)
    return found


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[int, int, int]]:
    """For each part: where its headers begin, where its content begins, where its content ends."""
    mark = b"--" + boundary
    if not body.startswith(mark):
        raise BadRequest("The form does not begin with its boundary.")
    at = len(mark)
    for _ in range(MAX_PARTS):
        if body.startswith(b"--", at):
            return
        if not body.startswith(b"\r\n", at):
            raise BadRequest("The form has a malformed boundary line.")
        head_end = body.find(b"\r\n\r\n", at, at + MAX_PART_HEAD_BYTES)
        end = body.find(b"\r\n" + mark, at)
        if head_end < 0 or end < head_end + 4:
            raise BadRequest("The form has a part without headers or without an end.")
        yield at, head_end + 4, end
        at = end + 2 + len(mark)
    raise BadRequest(f"The form has more than {MAX_PARTS} parts.")
