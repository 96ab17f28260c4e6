"""Alike to an embedder, and yet another question."""

from __future__ import annotations

import pytest

from gateway.caching.guard import conflicting


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I enable 2FA?", "How do I disable 2FA?"),
        ("What is 17 * 23?", "What is 17 * 24?"),
        ("Subtract 5 from 9", "Subtract 9 from 5"),
        ("Is it safe to eat?", "Is it not safe to eat?"),
        ("Can I eat raw fish?", "Can't I eat raw fish?"),
        ("Name two rivers of France", "Name three rivers of France"),
        ("Is the valve usually open?", "Is the valve usually closed?"),
        ("Which verbs are regular?", "Which verbs are irregular?"),
        ("the pros of nuclear power", "the cons of nuclear power"),
        ("Sort the list ascending", "Sort the list descending"),
        ('Translate "dog" to French', 'Translate "cat" to French'),
        ("Who was born before 1900?", "Who was born after 1900?"),
        ("Temperatur 20 Grad", "Temperatur 30 Grad"),
    ],
)
def test_turned_round(one: str, other: str) -> None:
    """Numbers, negations and opposites keep answers apart, whichever came first."""
    assert conflicting(one, other)
    assert conflicting(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what is the capital of france"),
        ("How do I turn on 2FA?", "How can I turn on 2FA, please?"),
        ("Tell me a joke about a cat.", "Tell me a joke about a cat"),
        ("What's the boiling point of water?", "What’s the boiling point of water?"),
    ],
)
def test_said_otherwise(one: str, other: str) -> None:
    """Another wording of the same is let through."""
    assert not conflicting(one, other)
