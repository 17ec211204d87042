"""Zeroing single weights instead of removing units: which pattern, which weights, how they stay zero.

The model keeps its shapes; what `prune` does otherwise is the same.
"""
