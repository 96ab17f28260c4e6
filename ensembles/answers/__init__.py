"""After inference, in parallel: ask several, then vote, rank or fuse their answers.

`base` states the contract, `strategy` runs it on live calls, `keys`, `vote` and `similarity` are what
methods compute with. Every other module is a published aggregator.
"""
