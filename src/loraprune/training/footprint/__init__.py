"""Predict the cost of a training step from the configuration: memory by purpose, FLOPs, and the GPUs that are needed.

Knows nothing about data or files.
"""

from loraprune.training.footprint.gpus import GPUS, Blocks, gpus_needed, on_each_gpu
from loraprune.training.footprint.live import LiveBytes
from loraprune.training.footprint.parts import Footprint, Footprints, Setting, footprints
from loraprune.training.footprint.precision import bytes_per_weight, dtype_of
from loraprune.training.footprint.step import Step, run_step

__all__ = [
    "GPUS",
    "Blocks",
    "Footprint",
    "Footprints",
    "LiveBytes",
    "Setting",
    "Step",
    "bytes_per_weight",
    "dtype_of",
    "footprints",
    "gpus_needed",
    "on_each_gpu",
    "run_step",
]
