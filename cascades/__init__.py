"""After inference, in sequence: is this answer good enough, or ask the next model?

`base` states the contracts, `executor` decides (the only place that does), `strategy` runs it on live
calls, `simulator` on an outcome table, `calibrate` fits the thresholds. Every other module is a published
scorer.
"""
