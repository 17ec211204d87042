"""A Llama pre-trained on the spot, pruned to 50 % by every criterion and the recipe `best`: perplexity on held-out text.

Some runs share the device to save time, so neither their wall times nor their memory say anything.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from loraprune.config.recipes import recipe
from loraprune.scoring.criteria import criteria
from on_gpu.pretraining import HELD_OUT, LARGE, TINY, TRAINING, make_model
from on_gpu.shapes import Chosen

WORKERS = 4


def warm_up() -> None:
    """Import what a run needs, while the model is still being trained."""
    torch.set_num_threads(2)
    import loraprune.pipeline  # noqa: F401


def run_one(name: str, options: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Prune or fine-tune with some options, and return what came of it."""
    from loraprune.config.training import FinetuneConfig, PruneConfig
    from loraprune.pipeline import finetune, prune

    shared = {**paths, "html": False, "save": 0}
    report = (
        finetune(FinetuneConfig(**shared, **options))
        if name == "finetune"
        else prune(PruneConfig(**shared, ratio=0.5, **options))
    )
    values = report.values
    kept = (
        "parameters",
        "ratio_reached",
        "steps",
        "verification",
        *(key for key in values if key.startswith("perplexity")),
    )
    return {"name": name, **{key: values[key] for key in kept if key in values}}


def runs_of(*, tiny: bool) -> dict[str, dict[str, Any]]:
    """Return the options of every run, the longest first."""
    names = ("gate",) if tiny else criteria.names()
    runs: dict[str, dict[str, Any]] = {"best": recipe("best"), "finetune": {}}
    if tiny:
        runs["best"] |= {"local": 3, "calibration": 512}
    return runs | {name: {"criterion": name} for name in names}


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield the rows so far, or why there is nothing to learn from."""
    missing = [name for name in (*TRAINING, HELD_OUT) if not (chosen.texts / name).is_file()]
    if missing:
        yield {"skipped": f"{chosen.texts} has no {missing[0]}"}
        return
    sizes = TINY if chosen.tiny else LARGE
    steps = {"steps": 4, "batch": 4, "length": 64} if chosen.tiny else {"steps": 100, "batch": 16, "length": 256}
    shared = {**steps, "lr": 1e-3, "device": chosen.device.type, "dtype": "bfloat16"}
    result: dict[str, Any] = {"definition": __doc__, "shape": sizes.shape, "options": shared, "rows": [], "failed": {}}
    count = 1 if chosen.tiny else WORKERS
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(count, spawn, warm_up) as pool:
        pool.submit(int)  # the first work starts all processes
        folder = Path(work)
        result["pretraining"] = make_model(folder, sizes, chosen)
        if chosen.device.type == "cuda":
            torch.cuda.empty_cache()
        yield result
        paths = {
            "model": str(folder / "model"),
            "data": str(folder / "train.txt"),
            "eval": str(folder / "held_out.txt"),
        }
        runs = runs_of(tiny=chosen.tiny)
        begun = {
            pool.submit(run_one, name, shared | options, paths | {"output": str(folder / name)}): name
            for name, options in runs.items()
        }
        for done in as_completed(begun):
            try:
                result["rows"].append(done.result())
                print(result["rows"][-1], flush=True)
            except Exception as error:  # a run that failed must not take the others along
                result["failed"][begun[done]] = f"{type(error).__name__}: {error}"[-500:]
            yield result
    result["rows"].sort(key=lambda row: list(runs).index(row["name"]))
    yield result
    if result["failed"]:
        raise SystemExit("; ".join(f"{name}: {why}" for name, why in result["failed"].items()))
