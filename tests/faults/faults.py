"""The faults, and what a plain model that has them shows: one table.

`whole` and `stream` say, for a caller who asked a model with nothing behind it: what he sees, how often the
model was tried, and how many tokens were charged (each costs 1 US dollar here). What the other kinds of call
show follows from these (`cells`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.upstream import DONE, GOOD_TEXT, ROLE, STOP, USAGE, Behaviour, Peer, completion, event, word

__all__ = ["FAULTS", "PROMPT", "Fault", "Seen"]

PROMPT = "x" * 40
"""Ten tokens, by its length."""

OK = 15
"""Tokens of an answer that reports its usage."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a caller sees: `status`, and the error's `code` ("" for an answer); `begun`: the error came as an event in
    a stream of status 200. `tried`: attempts at the model; `charged`: tokens, None where it depends on timing
    and only is more than nothing."""

    status: int
    code: str = ""
    tried: int = 1
    charged: int | None = 0
    begun: bool = False

    @property
    def answered(self) -> bool:
        return not self.code

    def told(self) -> str:
        """In words, for the table."""
        return f"{self.status}{' +' if self.begun else ''} {self.code}".strip()


@dataclass(frozen=True, slots=True)
class Fault:
    """`about` says what the backend does; `deployment` overrides the model's settings. `stream` None: as `whole`;
    `later_s`: the Retry-After that the caller is told; `whole` None: it is a
    fault of streams only."""

    about: str
    behave: Behaviour
    whole: Seen | None
    stream: Seen | None = None
    later_s: int | None = None
    deployment: Mapping[str, Any] = field(default_factory=dict)


def unavailable(tried: int = 1) -> Seen:
    return Seen(503, "upstream_unavailable", tried)


def broken(tried: int = 1) -> Seen:
    return Seen(502, "upstream_broken", tried)


def late(charged: int | None = 0) -> Seen:
    return Seen(504, "upstream_timeout", 1, charged)


def answered(charged: int = OK, tried: int = 1) -> Seen:
    return Seen(200, "", tried, charged)


def cut(charged: int | None, code: str = "upstream_broken") -> Seen:
    return Seen(200, code, 1, charged, begun=True)


SEEN = 12
"""Tokens charged for a stream of which two words were seen."""

# Clocks are generous, so that a busy machine does not ring them, but for faults that are about a clock.
SHORT = {"timeout_s": 0.25, "first_token_timeout_s": 0.2}
ENDLESS = {"timeout_s": 0.75}
IDLE = {"idle_timeout_s": 0.3}
UNKNOWN = {"base_url": "http://nowhere.invalid/v1", "connect_timeout_s": 0.5}


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def nothing(peer: Peer) -> None:
    peer.close()


async def hang(peer: Peer) -> None:
    await peer.hang()


async def slow_head(peer: Peer) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"." * 10_000:
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.01)


async def drip(peer: Peer) -> None:
    if peer.stream:
        await peer.begin()
        while True:
            await peer.chunk(b": still here\n\n")
            await asyncio.sleep(0.01)
    await peer.head(content_type="application/json", content_length="100000")
    while True:
        await peer.send(b" ")
        await asyncio.sleep(0.01)


def status(code: int, **headers: str) -> Behaviour:
    async def behave(peer: Peer) -> None:
        await peer.whole(b'{"error": {"message": "no", "type": "scripted", "code": "why"}}', code, **headers)

    return behave


def refused(code: int, tried: int = 1) -> Seen:
    return Seen(code, "why", tried)


async def fails_once(peer: Peer) -> None:
    await (peer.whole(b"{}", 500) if peer.count == 1 else peer.answer())


async def asks_for_a_moment(peer: Peer) -> None:
    await (peer.whole(b"{}", 429, retry_after_ms="5") if peer.count == 1 else peer.answer())


def body(data: bytes, kind: str = "application/json") -> Behaviour:
    async def behave(peer: Peer) -> None:
        await peer.whole(data, kind=kind)

    return behave


async def truncated(peer: Peer) -> None:
    data = completion()
    await peer.head(content_type="application/json", content_length=str(len(data)))
    await peer.send(data[:-9])
    peer.close()


async def reset_mid_body(peer: Peer) -> None:
    if peer.stream:
        await peer.partial()
        await asyncio.sleep(0.02)  # a reset throws away what has not been read
    else:
        await peer.head(content_type="application/json", content_length="100000")
        await peer.send(b'{"id": ')
    peer.reset()


async def endless(peer: Peer) -> None:
    if peer.stream:
        await peer.begin()
        while True:
            await peer.chunk(word("more "))
            await asyncio.sleep(0.002)
    await peer.head(content_type="application/json", transfer_encoding="chunked")
    while True:
        await peer.chunk(b" " * 4096)
        await asyncio.sleep(0.002)


async def garbage(peer: Peer) -> None:
    await peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    peer.close()


def wrong_usage(usage: Any) -> Behaviour:
    async def behave(peer: Peer) -> None:
        await peer.answer("gut ", "ist ", "nix.", usage=usage)

    return behave


async def cut_before(peer: Peer) -> None:
    await peer.begin()
    await peer.chunk(ROLE)
    peer.close()


async def cut_after(peer: Peer) -> None:
    await peer.partial()
    peer.close()


async def ended_early(peer: Peer) -> None:
    await peer.partial()
    await peer.end()


def mid_stream(data: bytes, words: int = 2) -> Behaviour:
    async def behave(peer: Peer) -> None:
        await peer.partial(words)
        await peer.chunk(data)
        await peer.hang()

    return behave


async def only_done(peer: Peer) -> None:
    await peer.begin()
    await peer.chunk(ROLE, DONE)
    await peer.end()


async def split(peer: Peer) -> None:
    await peer.begin()
    told = ROLE + word(GOOD_TEXT).replace(b"\\u00f6", "ö".encode()) + STOP
    for byte in told + event({"choices": [], "usage": USAGE}) + DONE:
        await peer.chunk(bytes([byte]))
    await peer.end()


async def twice_done(peer: Peer) -> None:
    await peer.answer(done=2)


async def no_done(peer: Peer) -> None:
    await peer.answer(done=0)


async def giant(peer: Peer) -> None:
    await peer.answer("gross " * 350_000)


async def mistyped(peer: Peer) -> None:
    if not peer.stream:
        await peer.whole(completion(), kind="text/plain")
        return
    await peer.whole(ROLE + word(GOOD_TEXT) + STOP + DONE, kind="text/plain")


async def one_piece(peer: Peer) -> None:
    await peer.begin()
    await peer.chunk(ROLE + word(GOOD_TEXT) + STOP + event({"choices": [], "usage": USAGE}) + DONE)
    await peer.end()


async def crlf(peer: Peer) -> None:
    await peer.begin()
    told = (ROLE, word(GOOD_TEXT), STOP, event({"choices": [], "usage": USAGE}), DONE)
    for part in told:
        await peer.chunk(b": still here\r\n\r\n", part.replace(b"\n", b"\r\n"))
    await peer.end()


async def comments(peer: Peer) -> None:
    await peer.partial()
    while True:
        await peer.chunk(b": still here\n\n")
        await asyncio.sleep(0.01)


async def oversized(peer: Peer) -> None:
    await peer.begin()
    await peer.chunk(ROLE)
    while True:
        await peer.chunk(b"data: " + b"x" * (1 << 20))


async def stalled(peer: Peer) -> None:
    await peer.partial()
    await peer.hang()


async def silent_head(peer: Peer) -> None:
    await peer.begin()
    await peer.chunk(ROLE)
    await peer.hang()


_ERROR = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
_REFUSAL = b'data: {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}\n\n'
_NOT_TEXT = b'data: {"choices": [{"index": 0, "delta": {"content": "\xff"}}], "usage": {}}\n\n'
_MALFORMED = b'data: {"id": "x", "choi\n\n'

FAULTS: Mapping[str, Fault] = {
    # ----------------------------------------------------------------------------------------- before an answer
    "refused": Fault("refuses the connection", nothing, unavailable(3), deployment={"base_url": "http://127.0.0.1:{closed}/v1"}),
    "dns": Fault("has a name that nobody knows", nothing, unavailable(3), deployment=UNKNOWN),
    "untrusted": Fault("has a certificate nobody vouches for", nothing, unavailable(3), deployment={"base_url": "https://127.0.0.1:{tls}/v1"}),
    "tls": Fault("does not speak TLS", nothing, unavailable(3), deployment={"base_url": "https://127.0.0.1:{port}/v1"}),
    "no-answer": Fault("closes without a word", nothing, unavailable()),
    "hang": Fault("accepts, then hangs", hang, late(), deployment=SHORT),
    "slow-head": Fault("sends its headers byte by byte", slow_head, late(), deployment=SHORT),
    "drip": Fault("drips its body, comments in a stream", drip, late(), deployment=SHORT),
    "garbage": Fault("does not speak HTTP", garbage, broken()),
    # ------------------------------------------------------------------------------------------------- statuses
    "400": Fault("answers 400", status(400), refused(400)),
    "401": Fault("answers 401", status(401), Seen(502, "upstream_credentials")),
    "403": Fault("answers 403", status(403), Seen(502, "upstream_credentials")),
    "404": Fault("answers 404", status(404), refused(404)),
    "405": Fault("answers 405", status(405), refused(405)),
    "408": Fault("answers 408", status(408), refused(408, 3)),
    "408-later": Fault("answers 408, Retry-After: 30", status(408, retry_after="30"), refused(408), later_s=30),
    "409": Fault("answers 409", status(409), refused(409, 3)),
    "409-later": Fault("answers 409, Retry-After: 30", status(409, retry_after="30"), refused(409), later_s=30),
    "413": Fault("answers 413", status(413), refused(413)),
    "422": Fault("answers 422", status(422), refused(422)),
    "429": Fault("answers 429", status(429), refused(429, 3)),
    "429-later": Fault("answers 429, Retry-After: 30", status(429, retry_after="30"), refused(429), later_s=30),
    "429-moment": Fault("answers 429, retry-after-ms: 5, then well", asks_for_a_moment, answered(tried=2)),
    "429-nonsense": Fault("answers 429, Retry-After: soon", status(429, retry_after="soon"), refused(429, 3)),
    "307": Fault("redirects", status(307, location="http://127.0.0.1:9/"), broken()),
    "500": Fault("answers 500", status(500), broken(3)),
    "500-once": Fault("answers 500, then well", fails_once, answered(tried=2)),
    "500-later": Fault("answers 500, Retry-After: 30", status(500, retry_after="30"), broken()),
    "502": Fault("answers 502", status(502), broken(3)),
    "502-later": Fault("answers 502, Retry-After: 30", status(502, retry_after="30"), broken()),
    "503": Fault("answers 503", status(503), unavailable(3)),
    "503-later": Fault("answers 503, Retry-After: 30", status(503, retry_after="30"), unavailable(), later_s=30),
    "504": Fault("answers 504", status(504), late()),
    "504-later": Fault("answers 504, Retry-After: 30", status(504, retry_after="30"), late()),
    # --------------------------------------------------------------------------------------------------- bodies
    "truncated": Fault("cuts its body short", truncated, broken()),
    "invalid-json": Fault("sends invalid JSON", body(b'{"id": "x", "choi'), broken()),
    "html": Fault("sends HTML", body(b"<html>hello</html>", "text/html"), broken()),
    "wrong-type": Fault("calls its answer text/plain", mistyped, answered(), broken()),
    "not-utf8": Fault("sends bytes that are no text", body(b'{"choices": [{"message": "\xff"}]}'), broken()),
    "giant": Fault("answers with two megabytes", giant, answered()),
    "empty": Fault("sends 200 and nothing", body(b""), broken()),
    "no-choices": Fault("sends 200 without an answer", body(b'{"id": "x"}'), broken()),
    "refusal-200": Fault(
        "refuses with status 200", body(b'{"error": {"message": "no", "code": 400}}'), Seen(400, "400"), broken()
    ),
    "error-200": Fault("sends an error with status 200", body(b'{"error": {"message": "no"}}'), broken()),
    "reset": Fault("resets the connection in the body", reset_mid_body, broken(), cut(SEEN)),
    "endless": Fault("never stops", endless, late(), cut(None, "upstream_timeout"), deployment=ENDLESS),
    "usage-wrong": Fault(
        "reports usage that is none",
        wrong_usage({"prompt_tokens": -7, "completion_tokens": "8"}),
        answered(14),
    ),
    "usage-odd": Fault("reports usage as text", wrong_usage("many"), answered(14)),
    "usage-missing": Fault("reports no usage", wrong_usage(None), answered(14)),
    # -------------------------------------------------------------------------------------------------- streams
    "sse-cut-before": Fault("cuts the stream before the first word", cut_before, None, broken()),
    "sse-cut-after": Fault("cuts the stream after two words", cut_after, None, cut(SEEN)),
    "sse-ended-early": Fault("ends the stream after two words", ended_early, None, cut(SEEN)),
    "sse-only-done": Fault("says [DONE] and nothing else", only_done, None, broken()),
    "sse-malformed-first": Fault("begins with a malformed event", mid_stream(_MALFORMED, 0), None, broken()),
    "sse-malformed": Fault("sends a malformed event after two words", mid_stream(_MALFORMED), None, cut(SEEN)),
    "sse-error-first": Fault("begins with an error event", mid_stream(_ERROR, 0), None, broken()),
    "sse-error": Fault("sends an error event after two words", mid_stream(_ERROR), None, cut(SEEN)),
    "sse-refusal-first": Fault(
        "begins with an event that refuses the request", mid_stream(_REFUSAL, 0), None, Seen(400, "400")
    ),
    "sse-refusal": Fault("sends such an event after two words", mid_stream(_REFUSAL), None, cut(SEEN, "400")),
    "sse-one-piece": Fault("sends its stream in one piece", one_piece, None, answered()),
    "sse-crlf": Fault("ends its lines with CR LF, and comments in between", crlf, None, answered()),
    "sse-split": Fault("sends its stream byte by byte", split, None, answered()),
    "sse-twice-done": Fault("says [DONE] twice", twice_done, None, answered()),
    "sse-no-done": Fault("never says [DONE]", no_done, None, cut(OK)),
    "sse-not-utf8": Fault("sends bytes that are no text", mid_stream(_NOT_TEXT), None, cut(SEEN)),
    "sse-oversized": Fault("sends an event that never ends", oversized, None, broken()),
    "sse-no-words": Fault("says who speaks, then hangs", silent_head, None, late(), deployment=SHORT),
    "sse-comments": Fault(
        "sends only comments after two words", comments, None, cut(SEEN, "upstream_timeout"), deployment=IDLE
    ),
    "sse-stalled": Fault("hangs after two words", stalled, None, cut(SEEN, "upstream_timeout"), deployment=IDLE),
}  # fmt: skip
