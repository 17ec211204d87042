"""What several benchmarks share; nothing here backs a claim on its own."""
