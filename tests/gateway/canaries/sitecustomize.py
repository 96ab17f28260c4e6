"""Loaded by every Python process of a canary run, before anything else: takes the second line of defence away, so that
the first must hold by itself, and, where `CHORUS_SABOTAGE` is set, leaks on purpose."""

import os

if os.environ.get("CHORUS_CANARIES"):
    from protocol.redaction import Redaction

    Redaction.text = lambda self, text: text  # type: ignore[method-assign]

if os.environ.get("CHORUS_SABOTAGE"):
    import logging

    from gateway.admission import Admission
    from gateway.answering import Answering
    from gateway.explanation import headers as explanation_headers  # noqa: F401 - so that it is loaded
    from gateway.ledger import entry
    from gateway.tracing import spans

    log = logging.getLogger("chorus.sabotage")

    _admit = Admission.admit

    async def admit(self, given):
        log.warning("who is %r?", given)
        return await _admit(self, given)

    Admission.admit = admit  # type: ignore[method-assign]

    _finished = Answering._finished

    def finished(self, record, exchange, scope):
        told = _finished(self, record, exchange, scope)
        if record.asked is not None and told.trace is not None:
            told.trace.decision["reason"] = str(record.asked.body.get("messages"))
            self._telemetry._decisions.add((str(record.asked.body.get("messages")), "none", "other"))
        return told

    Answering._finished = finished  # type: ignore[method-assign]

    entry.facts = lambda decision: {"said": str(decision)}
    spans.facts = lambda decision: {"reason": str(decision)}

    from backends import openai_http

    _refusal = openai_http.refusal

    def refusal(status, body, headers, *, name, secrets=()):
        return _refusal(status, body, headers, name=name)

    openai_http.refusal = refusal
