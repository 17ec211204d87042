"""Nothing lost: checkpoints of a run, the folders they lie in, signals, and steps whose numbers are no numbers."""
