"""Checkpoints of a run: write them, find them, and check that they belong to the run."""
