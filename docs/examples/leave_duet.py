"""Streams `duet` with the OpenAI SDK and leaves when it has enough: `python docs/examples/leave_duet.py [BASE_URL]`.

`make serve` serves `duet`. When the stream is closed, the gateway tells the engine host, which drops the request from
both models before their next step; the operator sees it as `outcome="cancelled"` in the metrics."""

from __future__ import annotations

import sys

from openai import OpenAI


def opening(client: OpenAI, question: str, enough: int) -> str:
    """The first `enough` characters, or a few more, of an answer that could be 1,500 tokens long."""
    stream = client.chat.completions.create(
        model="duet",
        messages=[{"role": "user", "content": question}],
        temperature=0.7,
        seed=7,
        max_tokens=1500,
        stream=True,
    )
    text = ""
    with stream:  # leaving the block closes the connection, whatever the reason
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if len(text) >= enough:
                break
    return text


def main() -> None:
    """Print the beginning of a story, and end."""
    base = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
    with OpenAI(base_url=base, api_key="unused") as client:
        sys.stdout.write(opening(client, "Tell me a long story about a lighthouse.", 80) + " …\n")


if __name__ == "__main__":
    main()
