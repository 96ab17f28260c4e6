"""Messages to prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.templates import STOPS, Template, Transcript, prompting
from engines.visible_text import VisibleText
from protocol.errors import BadRequest, SettingsError

CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
]


def test_a_transcript_names_the_speakers() -> None:
    """Turns in order, ending in a newline behind the assistant's tag."""
    text = Transcript("A talk.").render(CHAT).text
    assert text == "A talk.\n\nUser: Hello\n\nAssistant:\nHi!\n\nUser: And \nnow?\n\nAssistant:\n"


def test_a_system_message_takes_the_preambles_place() -> None:
    """What the caller says the conversation is, it is."""
    text = Transcript("A talk.").render([{"role": "system", "content": "Be brief."}, *CHAT[:1]]).text
    assert text == "Be brief.\n\nUser: Hello\n\nAssistant:\n"


@pytest.mark.parametrize("invented", ["Hi!\n\nUser: more", "Hi!\nUser: more", "Hi!\n\nAssistant:\nHi!"])
def test_invented_turns_are_cut(invented: str) -> None:
    """The next speaker's tag ends the answer, with the blank line before it."""
    rendered = Transcript().render(CHAT)
    text = VisibleText(rendered.stops, rendered.before)
    assert text.push(invented.encode()) + text.finish() == "Hi!"
    assert rendered.stops == STOPS


def test_a_turn_invented_at_once_is_an_empty_answer() -> None:
    """A tag as the very first thing counts too: the prompt ended in the newline before it."""
    rendered = Transcript().render(CHAT)
    text = VisibleText(rendered.stops, rendered.before)
    assert text.push(b"User: Hello") + text.finish() == ""


def test_a_template_refuses_in_our_shape() -> None:
    """raise_exception in a template, and a bug in one, become a BadRequest about the messages."""
    for source in ("{{ raise_exception('no roles') }}", "{{ messages[9].content.nothing }}"):
        with pytest.raises(BadRequest) as caught:
            Template(source, {}).render(CHAT)
        assert caught.value.param == "messages"


def test_a_template_reaches_nothing_of_python() -> None:
    """Templates come with weights from elsewhere, so they run in a sandbox."""
    with pytest.raises(BadRequest):
        Template("{{ messages.__class__.__mro__[1].__subclasses__() }}", {}).render(CHAT)


def test_asking_for_a_template_that_is_not_there(tmp_path: Path) -> None:
    """`chat: template` without one stops the start; `auto` falls back to a transcript."""
    assert isinstance(prompting(tmp_path), Transcript)
    with pytest.raises(SettingsError, match="transcript"):
        prompting(tmp_path, "template")


@pytest.mark.requires("weights:smollm2-135m-instruct", "weights:gemma3-270m")
def test_the_real_models(weights: Callable[[str], Path]) -> None:
    """SmolLM2 has its template, default system message included; Gemma, a base model, a transcript; both end
    alike."""
    smol = prompting(weights("smollm2-135m-instruct")).render(CHAT[:1])
    assert smol.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    gemma = prompting(weights("gemma3-270m"))
    assert isinstance(gemma, Transcript)
    assert gemma.render(CHAT[:1]).text.endswith("Assistant:\n")
