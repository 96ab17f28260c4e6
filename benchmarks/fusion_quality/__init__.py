"""What every fusion is worth against its own members: perplexity of a text, and accuracy on graded questions.

python -m benchmarks.fusion_quality [--seconds 600]
"""
