"""A request's body as the parameters litellm is given: an allow-list, field by field.

litellm takes keys, addresses, headers, canned answers and much else as parameters beside those of the model, so no
field gets there unless it is named here, or in the deployment's `pass_fields`. What is not allowed is refused by name,
or, with `drop_unsupported`, left out. No address in a message gets there either: litellm would fetch it from where it
runs, inside the operator's network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from protocol.chat import check_chat
from protocol.errors import BadRequest
from protocol.settings import HostedModel

__all__ = ["CHAT", "EMBEDDING", "chat_parameters", "embedding_parameters", "text_parameters"]

CHAT = frozenset({
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "messages", "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty",
    "prompt_cache_key", "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop",
    "temperature", "thinking", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
    "web_search_options",
})  # fmt: skip
"""Fields of a chat request that litellm translates for a provider, or says that it cannot."""

EMBEDDING = frozenset({"dimensions", "input", "input_type", "user"})

_TEXT = frozenset({
    "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop", "temperature", "top_p",
    "user",
})  # fmt: skip
"""Fields that text completions share with chat, and mean the same."""

_OURS = frozenset({"model", "stream", "stream_options", "encoding_format"})
"""Fields that the host reads itself."""

_OPENAIS_OWN = frozenset({"metadata", "store"})
"""Fields for OpenAI's own dashboards. No answer depends on them, and other providers have no such place."""

_WORDS = frozenset({
    "text", "content", "refusal", "name", "arguments", "reasoning_content", "thinking", "signature", "data",
    "annotations", "citations", "thinking_blocks",
})  # fmt: skip
"""Where a message has words, or bytes: never an address to fetch."""

_PLACES = frozenset(
    {"url", "image_url", "video_url", "audio_url", "file_url", "uri", "file_uri", "file_data"}
)
_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")


def chat_parameters(body: Mapping[str, Any], section: HostedModel) -> dict[str, Any]:
    """A chat request's. Raises `BadRequest` naming the field that cannot be passed on."""
    check_chat(dict(body))
    given = _allowed(body, CHAT, section)
    for i, message in enumerate(given["messages"]):
        for where, value in _places(message, f"messages[{i}]"):
            raise BadRequest(
                f"'{where}' is an address or a stored file ({value[:16]!r}…); nothing is fetched for this model: send "
                "the content itself, as a data: URL.",
                param=where,
            )
    for i, tool in enumerate(given.get("tools") or ()):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise BadRequest(
                f"'tools[{i}].type' must be 'function': this model takes no other tools.",
                param=f"tools[{i}].type",
            )
    return given


def text_parameters(body: Mapping[str, Any], section: HostedModel) -> dict[str, Any]:
    """A text completion's, asked as a chat of one message. Raises `BadRequest`."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise BadRequest("'prompt' must be one text: this model answers one at a time.", param="prompt")
    given = _allowed({key: value for key, value in body.items() if key != "prompt"}, _TEXT, section)
    return {**given, "messages": [{"role": "user", "content": prompt}]}


def embedding_parameters(body: Mapping[str, Any], section: HostedModel) -> dict[str, Any]:
    """An embedding request's. Raises `BadRequest`."""
    texts = body.get("input")
    listed = [texts] if isinstance(texts, str) else texts
    if (
        not isinstance(listed, list)
        or not listed
        or not all(isinstance(text, str) and text for text in listed)
    ):
        raise BadRequest("'input' must be a text or a list of texts, none empty.", param="input")
    return {**_allowed(body, EMBEDDING, section), "input": listed}


def _allowed(body: Mapping[str, Any], fields: frozenset[str], section: HostedModel) -> dict[str, Any]:
    """The fields of `body` that may go on. Raises `BadRequest` naming the first that may not."""
    given = {}
    for field, value in body.items():
        if value is None or field in _OURS:
            continue
        if field in fields or field in section.pass_fields:
            given[field] = value
        elif field not in _OPENAIS_OWN and not section.drop_unsupported:
            raise BadRequest(
                f"'{field[:64]}' is not a field that {section.provider} models take here.",
                param=field[:64],
                code="unsupported_parameter",
            )
    return given


def _places(part: Any, where: str) -> Iterator[tuple[str, str]]:
    """Paths and values of what, in a message, names content that lies somewhere else."""
    items: Iterator[tuple[Any, Any, str]]
    if isinstance(part, Mapping):
        items = ((key, value, f"{where}.{key}") for key, value in part.items())
    elif isinstance(part, list):
        items = ((None, value, f"{where}[{i}]") for i, value in enumerate(part))
    else:
        return
    for key, value, path in items:
        if isinstance(value, str):
            if (
                key == "file_id"
                or (key in _PLACES and not value.startswith("data:"))
                or (key not in _WORDS and _ADDRESS.match(value))
            ):
                yield path, value
        elif key not in ("annotations", "citations"):
            yield from _places(value, path)
