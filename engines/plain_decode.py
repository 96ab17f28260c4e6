"""One request to one model: vLLM samples, this turns ids into visible text and watches for stop strings."""

from __future__ import annotations

from engines.byte_vocab import ByteVocab
from engines.decode import Decode
from engines.engine import Engine, Sampled
from engines.generation import Generation, MemberUsage, Sink, TokenLogprob

__all__ = ["PlainDecode"]


class PlainDecode(Decode):
    """A request that one engine serves: `sampled` is called with what each step chose, until `done`."""

    def __init__(self, generation: Generation, engine: Engine, vocab: ByteVocab, sink: Sink) -> None:
        super().__init__(generation, sink)
        self._engine, self._vocab = engine, vocab
        self._spent = 0

    def start(self) -> None:
        """Queue the request in its engine."""
        asked = self._generation
        self._engine.add(self.id, asked.prompts[0], asked.sampling, self._vocab.eos)

    def requests(self) -> list[tuple[Engine, str]]:
        """The engine requests to drop when this one is over."""
        return [(self._engine, self.id)]

    def sampled(self, step: Sampled) -> None:
        """Show what the step added; end on a stop string or where vLLM ended (an end token, or a length)."""
        self._spent += len(step.ids)
        if self._generation.sampling.top_logprobs is not None and step.logprob is not None:
            top = tuple(
                (self._vocab.emits[i], logp) for i, logp in step.top[: self._generation.sampling.top_logprobs]
            )
            self._trail.push(TokenLogprob(self._vocab.text_of(step.ids), step.logprob, top))
        reason = step.finish_reason
        if reason is not None and reason != "length":
            reason = "stop"
        self._add(self._vocab.text_of(step.ids), reason)

    def _usage(self) -> tuple[MemberUsage, ...]:
        prompt = len(self._generation.prompts[0])
        return (MemberUsage(self.model, prompt, self._spent, self._engine.cached(self.id)),)
