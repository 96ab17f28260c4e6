"""`chorus chat`: talk to a gateway in the terminal, and see who answered and what it cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.parameters import Key, Url, gateway_url
from protocol.errors import ChorusError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["chat"]

_HELP = "/model NAME changes who is asked · /clear forgets the conversation · /quit or Ctrl-D leaves"


def chat(
    message: Annotated[str | None, typer.Argument(help="Say this, print the answer and leave.")] = None,
    model: Annotated[str, typer.Option(help="A model or strategy name; /v1/models lists them.")] = "auto",
    url: Url = "http://127.0.0.1:8080",
    key: Key = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
) -> None:
    """Talk to a running gateway. Answers stream; after each a line says who answered, tokens, cost and time.

    Examples:
        chorus chat

        chorus chat --model cascade "What is the capital of France?"
    """
    from rich.console import Console

    console = Console(highlight=False)
    talk = _Conversation(console, gateway_url(str(url)), key, model, max_tokens)
    if message is not None:
        talk.say(message)
        return
    console.print(f"Talking to {model} at {url}. {_HELP}", style="dim", markup=False)
    while (line := _read(console)) is not None:
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command == "/quit":
            return
        if command == "/clear":
            talk.messages.clear()
        elif command == "/model" and rest.strip():
            talk.model = rest.strip()
        elif command.startswith("/"):
            console.print(_HELP, style="dim", markup=False)
        else:
            try:
                talk.say(line)
            except ChorusError as error:
                # The conversation goes on: the question that failed is taken back.
                talk.messages.pop()
                console.print(error.message, style="red", markup=False)


class _Conversation:
    """Messages so far, and the gateway they are sent to."""

    def __init__(self, console: Console, url: str, key: str | None, model: str, max_tokens: int) -> None:
        self.messages: list[dict[str, str]] = []
        self.model = model
        self._console, self._url, self._key, self._max_tokens = console, url, key, max_tokens

    def say(self, text: str) -> None:
        """Send `text` and print the answer as it comes. Raises `ChorusError`."""
        from gateway.cli.client import stream

        self.messages.append({"role": "user", "content": text})
        body = {
            "model": self.model,
            "messages": self.messages,
            "max_tokens": self._max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started, answer = time.perf_counter(), ""
        members, cost = self.model, None
        usage: dict[str, Any] = {}
        for event in stream(self._url, self._key, body):
            members = event.get("headers", {}).get("x-chorus-model", members)
            for choice in event.get("choices", ()):
                piece = choice["delta"].get("content") or ""
                answer += piece
                self._console.out(piece, end="", highlight=False)
            usage = event.get("usage") or usage
            cost = event.get("chorus", {}).get("cost_usd", cost)
        self.messages.append({"role": "assistant", "content": answer})
        self._console.out("", highlight=False)
        self._console.print(
            _paid(members, usage, cost, time.perf_counter() - started), style="dim", markup=False
        )


def _paid(members: str, usage: dict[str, Any], cost_usd: float | None, seconds: float) -> str:
    """The line under an answer."""
    parts = [members.replace(",", " + ")]
    if usage:
        parts.append(f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens")
    if cost_usd is not None:
        parts.append(f"${cost_usd:.8f}".rstrip("0").rstrip("."))
    parts.append(f"{seconds:.1f} s")
    return "— " + " · ".join(parts)


def _read(console: Console) -> str | None:
    """The next line typed, None at the end of input."""
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return None
