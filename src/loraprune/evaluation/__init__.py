"""How good a model is and how fast: perplexity, tasks, generation, timing. Knows nothing about pruning."""
