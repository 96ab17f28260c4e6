"""Reaching a model: OpenAI-compatible HTTP, prices, and the scripted upstream that tests and demonstrations
talk to.

To a gateway worker the engine host and the embedder process are backends like any other, on a Unix socket.
"""
