"""Compare sizes and speeds of models."""

from loraprune.evaluation.benchmark.compare import compare_speed
from loraprune.evaluation.benchmark.engines import Engine
from loraprune.evaluation.benchmark.macs import count_macs
from loraprune.evaluation.benchmark.results import Comparison, Measurement, joined

__all__ = ["Comparison", "Engine", "Measurement", "compare_speed", "count_macs", "joined"]
