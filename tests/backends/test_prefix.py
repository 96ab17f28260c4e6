"""What names the beginning of a prompt."""

from __future__ import annotations

from typing import Any

from backends.prefix import prompt_prefix

SYSTEM = {"role": "system", "content": "You are terse. " * 20}


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return {"messages": [SYSTEM, *messages], **fields}


def test_a_conversation_keeps_its_prefix() -> None:
    """As it grows, its prefix stays the same; another first question makes another."""
    first = prompt_prefix(chat("What is a fox?"), 1024)
    assert prompt_prefix(chat("What is a fox?", "An animal.", "And a wolf?"), 1024) == first
    assert prompt_prefix(chat("What is a wolf?"), 1024) != first


def test_a_long_common_beginning_is_one_prefix() -> None:
    """Prompts that agree in the bytes looked at have one prefix, whatever follows."""
    assert prompt_prefix(chat("a"), 128) == prompt_prefix(chat("b"), 128)
    assert prompt_prefix(chat("a", tools=[{"name": "t"}]), 128) != prompt_prefix(chat("a"), 128)


def test_all_kinds_of_prompts() -> None:
    """Texts, token ids and parts have prefixes; what has no prompt has none."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "x"},
        {"prompt": [1, 2]},
        {"prompt": ["x"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    ]
    assert len({prompt_prefix(body, 64) for body in bodies}) == len(bodies)
    for body in ({}, {"messages": []}, {"messages": "?"}, {"messages": ["?"]}, {"input": "x"}):
        assert prompt_prefix(body, 64) is None
