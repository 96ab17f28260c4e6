"""The mock upstream: prebuilt answers at the least cost a Python process can give them.

python -m benchmarks.gateway.upstream --port 9000

A request's message says how large an answer it gets, and how fast. A stream goes out one event per turn of
the event loop, which a busy gateway meets several at a time, or, paced, one event every few milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from functools import cache
from typing import cast

import uvloop
from httptools import HttpRequestParser

from benchmarks.gateway.workload import PACE_S, answer, chunks

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM = re.compile(rb'"stream"\s*:\s*true')
USAGE = re.compile(rb'"include_usage"\s*:\s*true')
SIZE = re.compile(rb"size-(\d+)-")
PACED, IDLE = b"-paced ", b"-idle "
PAGES = {
    b"/v1/models": b'{"object":"list","data":[{"id":"mock","object":"model","created":1,"owned_by":"mock"}]}',
    b"/health": b'{"status":"ok"}',
}


@cache
def whole(size: int) -> bytes:
    """A complete answer, head included."""
    body = answer(size)
    return JSON_HEAD % len(body) + body


@cache
def stream(with_usage: bool) -> tuple[bytes, ...]:
    """A streamed answer, head included with the first event."""
    first, *rest = chunks(with_usage=with_usage)
    return (STREAM_HEAD + first, *rest[:-1], rest[-1] + b"0\r\n\r\n")


class Upstream(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._parser = HttpRequestParser(self)
        self._parts: list[bytes] = []
        self._url = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        body, self._parts = b"".join(self._parts), []
        if not self._url.endswith(b"/chat/completions"):
            page = PAGES.get(self._url, b"{}")
            self._transport.write(JSON_HEAD % len(page) + page)
        elif STREAM.search(body):
            events = stream(USAGE.search(body) is not None)
            # An idle stream: its head, its role and its first word, and then silence.
            self._send(events[:2] if IDLE in body else events, 0, PACED in body)
        else:
            size = SIZE.search(body)
            self._transport.write(whole(int(size.group(1)) if size else 1024))

    def _send(self, events: tuple[bytes, ...], i: int, paced: bool) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(events[i])
        if i + 1 < len(events):
            if paced:
                self._loop.call_later(PACE_S, self._send, events, i + 1, True)
            else:
                self._loop.call_soon(self._send, events, i + 1, False)


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(main(parser.parse_args().port))
