"""The words everyone speaks: chat types, the wire, `Strategy` and `Run`, routing, errors, settings, methods.

This package imports no other package of Chorus, so that every other one may import it.
"""
