"""How large and how fast models are, side by side."""

from loraprune.benchmark.compare import compare_speed
from loraprune.benchmark.engines import Engine
from loraprune.benchmark.macs import count_macs
from loraprune.benchmark.results import Comparison, Measurement, joined

__all__ = ["Comparison", "Engine", "Measurement", "compare_speed", "count_macs", "joined"]
