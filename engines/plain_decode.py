"""One request to one model: vLLM samples, this turns ids into visible text and watches for stop strings."""

from __future__ import annotations

from engines.byte_vocab import ByteVocab
from engines.engine import Engine, Sampled
from engines.generation import End, Generation, MemberUsage, Piece, Sink, TokenLogprob
from engines.token_trail import TokenTrail
from engines.visible_text import VisibleText

__all__ = ["PlainDecode"]


class PlainDecode:
    """The host's view of a plain request: `start` queues it, `sampled` is called with what each step chose,
    until `done`."""

    def __init__(self, generation: Generation, engine: Engine, vocab: ByteVocab, sink: Sink) -> None:
        self.id = generation.id
        self.sink = sink
        self.done = False
        self.model = generation.model
        self._generation, self._engine, self._vocab = generation, engine, vocab
        self._text = VisibleText(generation.sampling.stops, generation.sampling.before)
        self._trail = TokenTrail()
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
        shown = self._text.push(self._vocab.text_of(step.ids))
        reason = "stop" if self._text.stopped else step.finish_reason
        if reason is not None:
            shown += self._text.finish()
        tokens = self._trail.release(self._text.released)
        if shown or tokens:
            self.sink(Piece(shown, tokens))
        if reason is not None:
            self.done = True
            prompt = len(self._generation.prompts[0])
            spent = MemberUsage(self._generation.model, prompt, self._spent, self._engine.cached(self.id))
            self.sink(End("length" if reason == "length" else "stop", (spent,)))
