"""Answers kept for the next who asks the same: exactly, or, where switched on, nearly the same."""
