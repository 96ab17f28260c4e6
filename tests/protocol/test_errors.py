"""The error tree."""

from __future__ import annotations

import inspect

import pytest

from protocol import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]
MAKE = {
    errors.ContextLengthExceeded: lambda: errors.ContextLengthExceeded(limit=8, prompt_tokens=9),
    errors.ModelNotFound: lambda: errors.ModelNotFound("x", ["a", "b"]),
    errors.RateLimited: lambda: errors.RateLimited("slow down", type="requests", retry_after_s=1.5),
    errors.UpstreamRefused: lambda: errors.UpstreamRefused("no", status=429, retry_after_s=1.5),
}


def made(kind: type[errors.ChorusError]) -> errors.ChorusError:
    return MAKE.get(kind, lambda: kind("message"))()


def test_all_is_the_tree() -> None:
    """Every error class of the module is exported, and every exported one is an error of ours."""
    defined = {c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)}
    assert defined == set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_bodies_are_openais(kind: type[errors.ChorusError]) -> None:
    """Each body has OpenAI's four fields, a real type, and a code that is a string or null."""
    error = made(kind)
    body = error.body()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert isinstance(body["type"], str)
    assert body["code"] is None or isinstance(body["code"], str)
    assert body["message"] == error.message == str(error)
    assert 400 <= error.status < 600


@pytest.mark.parametrize("kind", CLASSES)
def test_blame_decides_the_status(kind: type[errors.ChorusError]) -> None:
    """Caller errors are 4xx (or a bound of their own) and never retryable; upstream errors may be."""
    error = made(kind)
    if isinstance(error, errors.CallerError):
        assert error.status < 500 or isinstance(error, (errors.DeadlineExceeded, errors.NotCached))
        assert not error.retryable
    elif isinstance(error, errors.UpstreamError):
        assert error.retryable
    elif not isinstance(error, errors.StateUnavailable):
        assert error.status == 500


def test_the_tree_drawn_is_the_tree() -> None:
    """The module docstring names every class, with its status."""
    drawn = errors.__doc__ or ""
    for kind in CLASSES:
        (line,) = [
            line for line in drawn.splitlines() if kind.__name__ in line.replace("│", " ").split()
        ] or [""]
        assert line, f"{kind.__name__} is not in the drawing"
        statuses = [word for word in line.split() if word.isdigit()]
        if statuses and kind is not errors.UpstreamRefused:
            assert int(statuses[0]) == made(kind).status


def test_context_length_names_both_numbers() -> None:
    """The message has the limit and what was asked for."""
    message = errors.ContextLengthExceeded(limit=2048, prompt_tokens=3000, asked=16).message
    assert "2048" in message
    assert "3000" in message
    assert "16" in message


def test_model_not_found_names_the_known() -> None:
    """The message lists the names there are, and cuts a monstrous name."""
    error = errors.ModelNotFound("x" * 10_000, ["a", "b"])
    assert "a, b" in error.message
    assert len(error.message) < 400
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_retry_headers() -> None:
    """503 says when to come back in both notations; budget and deadline say not to."""
    assert errors.UpstreamUnavailable("x", retry_after_s=2.4).headers() == {
        "retry-after": "2",
        "retry-after-ms": "2400",
    }
    assert errors.UpstreamRefused("x", status=400).headers() == {}
    assert errors.retry_after(0.0) == {"retry-after": "1", "retry-after-ms": "1"}
    for error in (errors.BudgetExceeded("x"), errors.DeadlineExceeded("x")):
        assert error.headers()["x-should-retry"] == "false"


def test_the_model_that_was_meant() -> None:
    """A misspelt name is answered with the nearest one; of very many names not all are listed."""
    assert "Did you mean 'gpt-4o'?" in errors.ModelNotFound("gpt4o", ["claude", "gpt-4o"]).message
    assert "Did you mean" not in errors.ModelNotFound("llama", ["claude", "gpt-4o"]).message
    assert errors.ModelNotFound("x", map(str, range(60))).message.endswith("48, 49 and 10 more.")


@pytest.mark.parametrize("kind", CLASSES)
def test_what_would_come_again_is_not_retried(kind: type[errors.ChorusError]) -> None:
    """SDKs try again after any 5xx unless they are told not to."""
    error = made(kind)
    again = error.status < 500 or error.retryable
    told = "x-should-retry" in error.headers()
    assert told == (not again or isinstance(error, (errors.BudgetExceeded, errors.QuotaSpent)))
