"""Measure quality and speed: perplexity, tasks, generation, timing. Knows nothing about pruning."""
