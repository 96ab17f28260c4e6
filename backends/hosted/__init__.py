"""Providers with a protocol of their own, reached through litellm: `host` is a small OpenAI-compatible server in front
of it, in a process of its own, so that to a gateway worker such a provider is one more OpenAI-compatible backend.

    quiet     litellm imported, with everything off that would act by itself
    asking    a request's body → the parameters litellm is given: an allow-list
    telling   what litellm gives back → OpenAI's bodies and chunks
    failing   litellm's exceptions → what an OpenAI-compatible provider would have answered
    stream_state  what litellm does not tell of a stream: whether it was cut, whether usage was told
    host      the server, and one deployment's call
    ids       what workers and host call a deployment
"""
