"""The tag protocol of router-r1: each rule, the reward, the cost scale, names and answers."""

from __future__ import annotations

import pytest

from outcomes.tag_protocol import (
    CostScale,
    broken_rule,
    exact_match,
    f1,
    final_answer,
    open_tag,
    resolve,
    reward,
    search_of,
    squad,
)

POOL = ("qwen2.5-7b", "llama-3.1-70b", "gemma:2b")
CALL = "<search>llama-3.1-70b:Who wrote Emma?</search><information>Jane Austen</information>"
SOUND = f"<think>A book.</think>{CALL}<think>So.</think><answer>Jane Austen</answer>"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (SOUND, None),
        ("<think>I know.</think><answer>Jane Austen</answer>", None),
        (SOUND.replace("</answer>", ""), "never closed"),
        (SOUND.replace("A book.", "A <answer>book</answer>"), "nested"),
        (SOUND.replace("<think>So.</think>", "</think>"), "not balanced"),
        (SOUND.replace("A book.", "..."), "none is empty"),
        (SOUND.replace("A book.", " "), "none is empty"),
        (f"Well. {SOUND}", "starts with"),
        (f"{SOUND} Right?", "starts with"),
        (SOUND.replace("<think>So.</think>", "<answer>x</answer>"), "exactly one answer"),
        (SOUND.replace("<information>Jane Austen</information>", ""), "its information"),
        (SOUND.replace("Emma?", "Emma: the book?"), "exactly one colon"),
        (SOUND.replace(":Who", " Who"), "exactly one colon"),
        (SOUND.replace("Who wrote Emma?", " "), "no placeholder"),
        (SOUND.replace("Who wrote Emma?", "your query"), "no placeholder"),
        (SOUND.replace("llama-3.1-70b:", "oracle:"), "of the pool"),
        (SOUND.replace("Who wrote", "llama-3.1-70b, who wrote"), "not repeated"),
        (SOUND.replace("llama-3.1-70b:", "gemma:2b:"), None),
    ],
)
def test_every_rule_of_the_format(text: str, rule: str | None) -> None:
    """Each broken rule is named and costs −1; a sound transcript keeps them all, names with colons included."""
    found = broken_rule(text, POOL)
    assert (found is None) if rule is None else (found is not None and rule in found)
    assert reward(text, POOL, ["Jane Austen"]) == (1.0 if rule is None else -1.0)


def test_reward_blends_cost_for_right_answers_only() -> None:
    """Wrong is 0 whatever it cost; right is (1 − a) + a·R_cost; F1 mode blends the F1."""
    assert reward(SOUND, POOL, ["Mary Shelley"], r_cost=1.0, cost_weight=0.9) == 0.0
    assert reward(SOUND, POOL, ["jane austen."], r_cost=0.25, cost_weight=0.6) == pytest.approx(
        0.4 + 0.6 * 0.25
    )
    half = reward(SOUND, POOL, ["Jane Smith"], r_cost=0.5, cost_weight=0.2, mode="f1")
    assert half == pytest.approx(0.8 * 0.5 + 0.2 * 0.5)


def test_cost_scale() -> None:
    """R_cost is 1 − the square root's place between the 5th and 95th percentile of the last ones, clipped; 0.5 where
    these are one."""
    scale = CostScale(window=101)
    assert scale.reward(3.0) == 0.5
    scale.see(4.0)
    assert scale.reward(9.0) == 0.5
    for root in range(101):
        scale.see(float(root**2))
    assert scale.reward(50.0**2) == pytest.approx(0.5)
    assert scale.reward(25.0**2) == pytest.approx(1 - 20 / 90)
    assert (scale.reward(0.0), scale.reward(1e6)) == (1.0, 0.0)


def test_names_and_questions() -> None:
    """A pool name is taken whole; a question keeps its colons; other names end at the first; near names are found."""
    assert search_of("gemma:2b: what: now? ", POOL).question == "what: now?"
    assert search_of("Qwen:a:b", POOL).question == "a:b"
    assert resolve("Qwen", POOL) == "qwen2.5-7b"
    assert resolve("LLaMA 3.1 70B", POOL) == "llama-3.1-70b"
    assert resolve("oracle", POOL) is None
    assert resolve("…", POOL) is None


def test_answers_and_tags() -> None:
    """The last whole answer counts; what is open at the end is told; SQuAD's normaliser drops case, articles, marks."""
    assert final_answer("<answer>a</answer> <answer> b </answer> <answer>c") == "b"
    assert final_answer("none") is None
    assert open_tag("<think>x</think><search>a:b") == "search"
    assert open_tag("<think>x</think>") is None
    assert squad("The  Quick, brown fox!") == "quick brown fox"
    assert exact_match("an Emma", ["Emma", "x"]) == 1.0
    assert f1("jane austen wrote", ["Jane Austen"]) == pytest.approx(0.8)
    assert f1("nobody", ["Jane Austen"]) == 0.0
