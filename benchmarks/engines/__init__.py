"""What fusing costs: members alone, fused, and the same algorithm as a plain transformers loop, in one run.

python -m benchmarks.engines [--quick]
"""
