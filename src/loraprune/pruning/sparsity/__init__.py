"""Zero single weights instead of removing units: patterns, choice of weights, masks that keep them zero.

The model keeps its shapes; everything else in `prune` is the same.
"""
