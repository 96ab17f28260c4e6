"""Ensembles: `answers` combines finished answers in the gateway; `tokens` decides token by token, and
`spans` some words at a time, in the engine host. `options` checks what they are told in the config."""
