"""Plain requests on the real models, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.engine import Engine, EngineSpec
from protocol.errors import SettingsError
from tests.engines.conftest import FOLDERS, GEMMA, PROMPTS, SMOL

if TYPE_CHECKING:
    from tests.engines.conftest import Asker

pytestmark = pytest.mark.models


@pytest.mark.parametrize("model", [SMOL, GEMMA])
def test_text_and_logprobs_are_those_of_transformers(
    ask: Asker, weights: Callable[[str], Path], model: str
) -> None:
    """Greedy text equals transformers' own, and each token's log-probability is the raw one at temperature
    1."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(weights(FOLDERS[model]), dtype=torch.float32).eval()
    prompt = ask.prompt_ids(model, PROMPTS[1])
    reply = ask.send_ids(model, prompt, max_tokens=12, top_logprobs=3).result()
    with torch.inference_mode():
        out = reference.generate(torch.tensor(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0)
        logps = reference(out).logits[0].log_softmax(-1)
    new = out[0, len(prompt[0]) :].tolist()
    vocab = ask.host.vocabs[model]
    assert reply.text.encode() == vocab.text_of(new)
    for position, token in enumerate(reply.tokens):
        row = logps[len(prompt[0]) + position - 1]
        assert token.logprob == pytest.approx(float(row[new[position]]), abs=2e-3)
        assert token.token == token.top[0][0] == vocab.emits[new[position]]
        assert len(token.top) == 3


def test_a_device_that_is_not_there_is_refused(weights: Callable[[str], Path]) -> None:
    """The error names the setting and says what to do."""
    spec = EngineSpec(SMOL, weights(FOLDERS[SMOL]), "float32", 256, 0.05, device="cuda:1")
    with pytest.raises(
        SettingsError, match=r"engine\.device: there is no 'cuda:1' .* Leave it out, or install"
    ):
        Engine.load(spec)


def test_the_draws_of_a_temperature_follow_the_distribution(ask: Asker) -> None:
    """Drawing the first token often gives the most likely one about as often as its probability says."""
    for model in (SMOL, "duet"):
        tickets = [
            ask.send(model, "hi", temperature=1.0, max_tokens=1, seed=n, top_logprobs=1) for n in range(40)
        ]
        tokens = [token for ticket in tickets for token in ticket.result().tokens]
        best, logp = tokens[0].top[0]
        share = sum(token.token == best for token in tokens) / 40
        p = math.exp(logp)
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 40)


def test_logprobs_cover_the_visible_text_and_no_more(ask: Asker) -> None:
    """The tokens of an answer spell its text: no end token, nothing behind a stop string."""
    for model in (SMOL, GEMMA, "duet"):
        reply = ask(model, PROMPTS[0], max_tokens=24, top_logprobs=0)
        assert b"".join(token.token for token in reply.tokens).decode() == reply.text
        assert all(token.logprob <= 0 and not token.top for token in reply.tokens)


def test_a_seed_with_a_prompt_read_in_pieces(ask: Asker) -> None:
    """A seeded request whose long prompt takes several steps draws the same text again, in company too."""
    question = "Go on with this: " + "one two three " * 30
    alone = ask(SMOL, question, temperature=1.0, seed=4, max_tokens=8).text
    pairs = [(SMOL, question), (GEMMA, question), ("duet", question)]
    together = [ask.send(*pair, temperature=1.0, seed=4, max_tokens=8) for pair in pairs]
    assert together[0].result().text == alone
    assert all(ticket.result().end is not None for ticket in together[1:])
