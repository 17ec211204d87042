"""Real pre-trained encoders, MiniLM on GLUE and DINOv2 on images, pruned to 50 % beside plain LoRA fine-tuning.

    python benchmarks/real_encoders.py FOLDER [minilm-sst2] [dinov2-cifar10] [--criteria lora magnitude movement best] [--seeds 0 1 2]

FOLDER has the models `minilm-22m` and `dinov2-small` in Hugging Face format. A criterion runs in the paper's recipe; `best` is the
default of `prune`. Every run begins with an untrained head and tunes LoRA and the head for the same steps on the same rows. Reads
../shared; `python benchmarks/tables.py` prints the tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from helpers import accuracy
from helpers.common import SHARED

GLUE, IMAGES = SHARED / "data" / "glue", SHARED / "data" / "images"
TEXT: dict[str, Any] = {"steps": 300, "batch": 32, "lr": 1e-3, "length": 64}
IMAGE: dict[str, Any] = {"steps": 100, "batch": 16, "lr": 5e-4}
SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"minilm-{task.replace('-', '').lower()}": ("minilm-22m", {"data": str(GLUE / task), **TEXT})
       for task in ("SST-2", "MRPC", "RTE", "CoLA", "STS-B")},
    "dinov2-cifar10": ("dinov2-small", {"data": str(IMAGES / "cifar10"), **IMAGE}),
    "dinov2-caltech101": ("dinov2-small", {"data": f"vtab-caltech101:test={IMAGES / 'caltech101'}", **IMAGE}),
}  # fmt: skip
"""model and task -> folder of the model and options of its runs"""
COMMON: dict[str, Any] = {"rank": 8, "device": "cpu"}
CRITERIA = ["lora", "magnitude", "movement", "best"]
WORK = Path("build") / "real_encoders"


def main() -> None:
    """Measure every subject that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(SUBJECTS)}; without any all of them")
    accuracy.add_options(parser)
    parser.set_defaults(criteria=CRITERIA)
    options = parser.parse_args()
    for subject in options.subjects or SUBJECTS:
        model, own = SUBJECTS[subject]
        accuracy.measure(
            subject, options.folder / model, common=COMMON | own, grid=accuracy.grid(options), work=WORK / subject
        )


if __name__ == "__main__":
    main()
