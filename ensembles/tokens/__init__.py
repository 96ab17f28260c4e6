"""Fusions: several models decode one text together. Methods are pure decisions; the engine host does
everything else.

Importing these modules loads no torch: tensors come in as arguments.
"""
