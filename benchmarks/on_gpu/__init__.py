"""The parts of `benchmarks/gpu.py`, a module each: `run(chosen)` yields its result so far whenever there is more of it."""
