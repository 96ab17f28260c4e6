"""What fusing costs: members alone, every fusion, and the same algorithm as a plain transformers loop, in one run.

python -m benchmarks.engines [--quick]
"""
