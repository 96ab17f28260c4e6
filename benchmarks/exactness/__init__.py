"""Whether the engine host computes what the methods say: against plain transformers loops, in float32.

python -m benchmarks.exactness [--seconds 600]
"""
