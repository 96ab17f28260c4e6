"""Ensembles: `answers` combines finished answers in the gateway; `tokens` decides token by token in the
engine host."""
