"""The engine host: several vLLM engines in one process, whose next-token logits meet as tensors.

    server      HTTP in front          answer      one answer, whole or streamed
    host        the step loop          engine      one vLLM engine, its step cut in two
    inside      hidden states, for those who ask
    decode                             what every request has in common; a team of engines
    plain_decode                       one request to one model
    fused_decode, spec_decode, search_decode
                                       one text by several, token by token; drafted ahead; searched for
    span_decode, seat, own_words       one text by several, some words at a time
    byte_vocab, union, text_state      what makes different vocabularies comparable
    visible_text, token_trail, choose  what the client sees, and sampling
    templates, assemble, price         prompting, settings → host, measured prices
    teaching                           training what some methods have to learn

Importing this package loads neither torch nor vLLM; `Engine.load` does.
"""
