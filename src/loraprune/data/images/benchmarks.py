"""Benchmarks of images by name, VTAB-1k's nineteen tasks and CUB-200: 800 images for training and 200 for evaluation.

Source: Zhai et al., VTAB (arXiv 1910.04867): hyper-parameters are chosen on 800 and 200 images of the training
split; the figure to report comes from training on all 1,000 and evaluating on the test split. The lists of images behind
the published figures belong to TensorFlow Datasets and cannot be had from the hub: here the 1,000 are drawn by a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINED, JUDGED = 800, 200
DRAW_SEED = 0
TEST = "test"
VTAB_PREFIX = "vtab-"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where the images of a benchmark are stored on the hub, and in which columns."""

    hub: str
    image: str
    label: str


def _vtab(name: str) -> Benchmark:
    """Return a task as the CLIP benchmark stores all of VTAB. Source: LAION-AI/CLIP_benchmark, webdatasets.txt and README."""
    return Benchmark(f"clip-benchmark/wds_{name}", "webp", "cls")


BENCHMARKS = {
    "vtab-caltech101": _vtab("vtab-caltech101"),
    "vtab-cifar100": _vtab("vtab-cifar100"),
    "vtab-dtd": _vtab("vtab-dtd"),
    "vtab-flowers102": _vtab("vtab-flowers"),
    "vtab-pets": _vtab("vtab-pets"),
    "vtab-sun397": _vtab("sun397"),
    "vtab-svhn": _vtab("vtab-svhn"),
    "vtab-camelyon": _vtab("vtab-pcam"),
    "vtab-eurosat": _vtab("vtab-eurosat"),
    "vtab-resisc45": _vtab("vtab-resisc45"),
    "vtab-retinopathy": _vtab("vtab-diabetic_retinopathy"),
    "vtab-clevr-count": _vtab("vtab-clevr_count_all"),
    "vtab-clevr-distance": _vtab("vtab-clevr_closest_object_distance"),
    "vtab-dmlab": _vtab("vtab-dmlab"),
    "vtab-dsprites-location": _vtab("vtab-dsprites_label_x_position"),
    "vtab-dsprites-orientation": _vtab("vtab-dsprites_label_orientation"),
    "vtab-kitti": _vtab("vtab-kitti_closest_vehicle_distance"),
    "vtab-norb-azimuth": _vtab("vtab-smallnorb_label_azimuth"),
    "vtab-norb-elevation": _vtab("vtab-smallnorb_label_elevation"),
    "cub-200": Benchmark("bentrevett/caltech-ucsd-birds-200-2011", "image", "label"),
}
"""name of --data -> its place on the hub"""


@dataclass(frozen=True, slots=True)
class Named:
    """A benchmark as `--data` names it: NAME, NAME:test, NAME=FOLDER or NAME:test=FOLDER."""

    benchmark: Benchmark
    final: bool
    """train on all 1,000 and evaluate on the test split"""
    folder: str | None
    """local folder of its images; None for the hub"""


def find_benchmark(name: str) -> Named | None:
    """Parse `name` if it names a benchmark."""
    head, _, folder = name.partition("=")
    key, _, part = head.partition(":")
    if key not in BENCHMARKS or part not in ("", TEST):
        return None
    return Named(BENCHMARKS[key], part == TEST, folder or None)
