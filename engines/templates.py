"""Messages to prompts, one dialect per model.

A model with a chat template of its own gets exactly that, its default system message included. A base model
gets a plain transcript, and stop strings for the next speaker's tag, so that turns it invents never reach the
user. Both kinds of prompt end in a newline: where a prompt ended in "Assistant:" its model's first token
would be " The", the other's "The", and a fusion's first step would split its mass."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.chat import message_text
from protocol.errors import BadRequest, SettingsError

__all__ = ["Prompting", "Rendered", "Template", "Transcript", "prompting"]

PREAMBLE = (
    "The following is a conversation with a helpful AI assistant. "
    "The assistant answers briefly and correctly."
)
TAGS = {"user": "User", "assistant": "Assistant", "tool": "Tool", "function": "Tool"}
STOPS = tuple(f"{gap}{tag}:".encode() for gap in ("\n\n", "\n") for tag in ("User", "Assistant", "System"))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, the stop strings that belong to its form, and the bytes it ends with that such a string may
    begin in."""

    text: str
    stops: tuple[bytes, ...] = ()
    before: bytes = b""


@dataclass(frozen=True, slots=True)
class Transcript:
    """`User:` and `Assistant:` turns under a line that says what they are; a system message takes that line's
    place."""

    preamble: str = PREAMBLE

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """Never fails: every message has a place in a transcript."""
        system = [message_text(m) for m in messages if m["role"] in ("system", "developer")]
        turns = [m for m in messages if m["role"] not in ("system", "developer")]
        blocks = ["\n\n".join(text for text in system if text.strip()) or self.preamble]
        for message in turns:
            tag = TAGS[message["role"]]
            blocks.append(f"{tag}:{chr(10) if tag == 'Assistant' else ' '}{message_text(message).strip()}")
        return Rendered("\n\n".join([*blocks, "Assistant:\n"]), STOPS, b"\n")


class Template:
    """A model's own Jinja template, in a sandbox."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise BadRequest(
                f"The model's chat template does not take these messages: {message}", param="messages"
            )

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        self._template = environment.from_string(source)
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """Raises `BadRequest` for messages the template refuses."""
        from jinja2 import TemplateError

        plain = [
            {**m, "role": "system" if m["role"] == "developer" else m["role"], "content": message_text(m)}
            for m in messages
        ]
        try:
            return Rendered(self._template.render(messages=plain, add_generation_prompt=True, **self._tokens))
        except TemplateError as error:
            raise BadRequest(
                f"The model's chat template does not take these messages: {error}", param="messages"
            ) from None


Prompting = Template | Transcript


def prompting(folder: Path, kind: str = "auto") -> Prompting:
    """How to prompt the model in `folder`: "template", "transcript", or "auto", its template if it has one.

    Raises `SettingsError` when a template is asked for and there is none.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    jinja = folder / "chat_template.jinja"
    source = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
    if kind == "transcript" or (kind == "auto" and not isinstance(source, str)):
        return Transcript()
    if not isinstance(source, str):
        raise SettingsError(f"{folder.name} has no chat template; use 'chat: transcript'.")
    named = {key: config.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return Template(source, {key: value for key, value in texts.items() if isinstance(value, str)})
