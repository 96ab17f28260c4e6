"""The requests of the benchmark, and how a complete answer to each is told from an incomplete one."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

__all__ = [
    "CHUNKS",
    "IDLE",
    "KEY",
    "MODEL",
    "NUMBER",
    "PACE_S",
    "PROMPT_TOKENS",
    "WORKLOADS",
    "Workload",
    "answer",
    "chunks",
]

MODEL = "mock"
KEY = "sk-benchmark-key"
CHUNKS = 64
PROMPT_TOKENS = 200
"""What the upstream reports for every request, beside `CHUNKS` completion tokens."""
WORD = "tok "
END = "the-end"
NUMBER = b"#00000000"
PACE_S = 0.005


@dataclass(frozen=True, slots=True)
class Workload:
    """`size` is of the request's body and, not streamed, of the answer's, in bytes. A `paced` stream's
    events come `PACE_S` apart, as a model's do, so that no two can be relayed in one piece; any other comes
    as fast as it can. An `idle` one stops after its first word, until its reader leaves."""

    name: str
    size: int
    stream: bool = False
    paced: bool = False
    idle: bool = False

    def body(self, model: str = MODEL) -> bytes:
        """The body of a request for `model`, exactly `size` bytes; `NUMBER` in it may be replaced, for a request whose
        text nobody has seen before."""
        fields = {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": ""},
            ],
            "temperature": 0.7,
            "max_tokens": 512,
        }
        if self.stream:
            fields["stream"] = True
        pace = "idle" if self.idle else "paced" if self.paced else "fast"
        asked = f"size-{self.size}-{pace} {NUMBER.decode()} "
        filling = "x" * (self.size - len(orjson.dumps(fields)) - len(asked))
        fields["messages"][1]["content"] = asked + filling  # type: ignore[index]
        return orjson.dumps(fields)

    def complete(self, body: bytes) -> bool:
        """Whether `body`, whatever a gateway did to its JSON, is the whole answer."""
        if self.stream:
            return body.rstrip().endswith(b"data: [DONE]") and body.count(WORD.encode()) == CHUNKS
        return END.encode() in body and len(body) >= self.size // 2


WORKLOADS = (
    Workload("1 KB", 1024),
    Workload("32 KB", 32 * 1024),
    Workload(f"stream of {CHUNKS}", 1024, stream=True),
    Workload(f"paced stream of {CHUNKS}", 1024, stream=True, paced=True),
)
IDLE = Workload("idle stream", 1024, stream=True, idle=True)


def answer(size: int) -> bytes:
    """A complete answer of `size` bytes."""
    body = {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": END, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage(),
    }
    text = "x" * (size - len(orjson.dumps(body))) + END
    body["choices"][0]["message"]["content"] = text  # type: ignore[index]
    return orjson.dumps(body)


def chunks(*, with_usage: bool) -> list[bytes]:
    """The events of a streamed answer, `[DONE]` included, each as one HTTP chunk."""
    head = {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
    }
    silent = {"usage": None} if with_usage else {}

    def told(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return orjson.dumps({**head, "choices": [choice], **silent})

    events = [told({"role": "assistant", "content": ""})]
    events += [told({"content": WORD})] * CHUNKS
    events.append(told({}, "stop"))
    if with_usage:
        events.append(orjson.dumps({**head, "choices": [], "usage": usage()}))
    events.append(b"[DONE]")
    framed = [b"data: " + event + b"\n\n" for event in events]
    return [b"%x\r\n%b\r\n" % (len(event), event) for event in framed]


def usage() -> dict[str, int]:
    """What the upstream reports."""
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": CHUNKS,
        "total_tokens": PROMPT_TOKENS + CHUNKS,
    }
