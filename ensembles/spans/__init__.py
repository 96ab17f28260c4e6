"""During inference, in spans: members write the next few words each, judge one another's, and one of them is kept.

One module a method, over the `SpanFusion` contract of `base`. They run inside the engine host.
"""
