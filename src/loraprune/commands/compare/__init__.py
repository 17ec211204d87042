"""`loraprune compare`: many runs on the same data, one table, plots."""
