"""During inference, in steps: members write steps from many places of a tree, and its best chain is the answer.

One module a method, over the contract of `ensembles.spans.base`. They run inside the engine host.
"""
