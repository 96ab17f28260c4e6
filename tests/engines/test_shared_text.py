"""Common text of differing prompts."""

from __future__ import annotations

from engines.shared_text import common_run, tokens_within


def test_the_words_between_the_templates() -> None:
    """The longest run of bytes that all prompts hold."""
    texts = [b"<system>Be kind.<user>What is 2 + 2?<assistant>", b"User: What is 2 + 2?\n\nAssistant:"]
    assert common_run(texts) == b"What is 2 + 2?"
    assert common_run([*texts, b"Q: What is 2"]) == b"What is 2"
    assert common_run([b"abc", b"xyz"]) == b""
    assert common_run([b"same", b"same"]) == b"same"


def test_tokens_of_the_run() -> None:
    """Tokens that stick out of it, or emit nothing, are not of it; offsets count from its beginning."""
    pieces = [b"", b"User:", b" What", b" is", b"", b" it?\n", b"!"]
    assert tokens_within(b"What is it?", pieces) == [(3, 4)]
    assert tokens_within(b" What is it?\n", pieces) == [(2, 0), (3, 5), (5, 8)]
    assert tokens_within(b"", pieces) == []
