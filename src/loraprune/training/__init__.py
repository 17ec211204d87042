"""One training run: its set-up, the Trainer with its callbacks, checkpoints and teachers."""
