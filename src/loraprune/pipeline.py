"""The main job: train and prune, merge, save, verify, judge. Everything it does is done elsewhere; it says in which order.

Plain LoRA fine-tuning is the same job with nothing to remove.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.samples import Showcase
from loraprune.families.depth import numbered_as_before
from loraprune.groups import Group, Side
from loraprune.models.adapters import merge_lora
from loraprune.models.loading import load_with_head, resolve
from loraprune.models.precision import compute_in_float32_
from loraprune.models.quantised import dequantise_
from loraprune.models.saving import cast_weights_, round_weights_, save_model
from loraprune.models.stored_tensors import stored_tensors
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.sparsity.sparsifier import Sparsifier
from loraprune.pruning.verify import (
    Checks,
    UnitSums,
    check_units,
    difference,
    logits_of,
    masked_logits,
    probe_of,
    rounding_noise,
    unit_sums,
    unverified_if_it_fails,
)
from loraprune.reporting.html.page import write_page
from loraprune.reporting.report import Quality, Report, make_report, write_folder
from loraprune.rounds import prune_in_rounds
from loraprune.runtime import launch
from loraprune.runtime.processes import first_alone, joined, together
from loraprune.runtime.workspace import new_folder
from loraprune.training.callback import LoRAPruneCallback
from loraprune.training.fit import fit
from loraprune.training.record import Training
from loraprune.training.resume.run import newest_checkpoint
from loraprune.training.setup import Job, free, load_job

logger = logging.getLogger(__name__)


def prune(config: PruneConfig) -> Report:
    """Prune a model while fine-tuning it with LoRA, and write a folder that `from_pretrained` loads.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    if config.rounds > 1:
        return prune_in_rounds(config, prune)
    return _run(config, LoRAPruneCallback(config.pruning(), guarded=True))


def finetune(config: FinetuneConfig) -> Report:
    """Fine-tune the dense model with LoRA, merge and save: the baseline of every pruned model.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    return _run(config, None)


def _run(config: PruneConfig | FinetuneConfig, callback: LoRAPruneCallback | None) -> Report:
    began = time.perf_counter()
    with (
        joined("prune" if callback else "finetune", config.device),
        new_folder(Path(config.output), overwrite=config.overwrite, resume=config.resume, costly=True) as folder,
    ):
        with together():
            checkpoint = newest_checkpoint(folder.parent, config) if config.resume else None
            job = load_job(config)
            logger.info(
                "%s: %s parameters; judged first by %d held-out rows, then trained with %d",
                config.model, f"{job.dense_parameters:,}", len(job.data.held_out), len(job.data.training),
            )  # fmt: skip
            dense = job.task.judge(job.model, job.data, config.batch)
        show = Showcase(job.data.held_out, job.data.processor, wanted=config.html and launch.is_first())
        show.write("dense", job.model)
        training = fit(job, callback, folder.parent, checkpoint)
        return first_alone(
            lambda: _finish(job, callback, folder, training=training, dense=dense, show=show, began=began)
        )


def _finish(
    job: Job,
    callback: LoRAPruneCallback | None,
    folder: Path,
    *,
    training: Training,
    dense: Measured,
    show: Showcase,
    began: float,
) -> Report:
    """Merge, save, verify, judge and report."""
    config, adapted, job.adapted = job.config, job.adapted, None
    assert adapted is not None
    pruner = callback.pruner if callback else None
    groups = pruner.groups if pruner else job.groups
    plan = pruner.plan if pruner else Plan.full(groups)

    merging = time.perf_counter()
    probe = probe_of(job.model)
    changed: Collection[Side] = pruner.config.changed if pruner else ()
    sums = unit_sums(adapted, pruner.present if pruner else groups, changed=changed)
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    dequantised = compute_in_float32_(adapted)
    logits = logits_of(adapted, probe)
    job.model = merge_lora(adapted, dequantised)
    del adapted
    training.seconds += time.perf_counter() - merging
    if pruner:
        pruner.release()
    checks = Checks(job.model.dtype, rounding_noise(job.model, probe))
    merged = logits_of(job.model, probe)
    checks.adapted_vs_merged = checks.compare(
        "adapted and merged model", logits, merged, rounded=config.quantize == "8bit" and not dequantised
    )
    round_weights_(job.model, job.stored)
    promise = Promise(groups, sums, changed, logits_of(job.model, probe), job.model.dtype)
    checks.rounding = difference(merged, promise.logits)
    cast_weights_(job.model, job.stored)
    save_model(
        job.model, folder, config=job.dense_config, groups=groups, counts=counts, dtype=job.stored,
        max_shard_size=config.max_shard_size,
    )  # fmt: skip
    free(job)
    job.data.processor.save_pretrained(folder)
    with unverified_if_it_fails():
        sparse = pruner if isinstance(pruner, Sparsifier) else None
        _verify_saved(job, plan, folder, promise, checks, sparse=sparse, show=show)
        pruned = job.task.judge(job.model, job.data, config.batch)
        show.time("pruned", job.model, folder)
        show.write("pruned", job.model)
        report = make_report(
            config, quality=Quality(job.task, dense, pruned, show.to_json()), training=training, plan=plan, pruner=pruner,
            verification=checks.verification(saved_as=job.model.config.model_type, dense_noise=job.noise),
            parameters=(job.dense_parameters, job.model.num_parameters()), began=began,
        )  # fmt: skip
        # Scores of single weights would be as large as the model.
        scored = pruner if isinstance(pruner, Pruner) else None
        write_folder(
            folder, report, config, scores=scored.scores.values if scored else None, history=scored.history if scored else None
        )  # fmt: skip
        if config.html:
            write_page(folder)
    checks.raise_failed()
    return report


@dataclass(frozen=True, slots=True)
class Promise:
    """What the model was before it was saved."""

    groups: tuple[Group, ...]
    sums: UnitSums
    changed: Collection[Side]
    """sides of projections whose frozen weights recovery changed"""
    logits: Tensor
    """of the probe, from weights as precise as the file's"""
    dtype: torch.dtype
    """precision of computation: float32 where memory has room for it"""


def _verify_saved(
    job: Job, plan: Plan, folder: Path, promise: Promise, checks: Checks, *, sparse: Sparsifier | None, show: Showcase
) -> None:
    """Compare what the model was with the masked dense one and with what is loaded from the folder, which replaces it.

    No two models are in memory at any time: the dense one is filled from the files, tensor by tensor.
    """
    dtype, head = promise.dtype, job.task.head
    saved, _ = load_with_head(str(folder), head, device=job.device, dtype=dtype)
    probe = probe_of(saved)
    reloaded = logits_of(saved, probe)
    with tempfile.TemporaryDirectory(dir=folder.parent) as spare:
        stored = stored_tensors(saved, folder, Path(spare))
        del saved
        gc.collect()
        dense = job.load_dense(dtype, quantisation=job.quantisation)
        dequantise_(dense)
        if sparse:
            sparse.check_saved(folder, dense)
        expected = unit_sums(dense, promise.groups, plan=plan, changed=promise.changed)
        with checks.findings.check():
            check_units(expected, promise.sums, rounded=job.config.quantize == "4bit")
        counts = {name: len(kept) for name, kept in plan.kept.items()}
        before = numbered_as_before({name: name for name in stored}, counts)
        masked = masked_logits(dense, stored.named(before), promise.groups, plan, probe)
    as_computed: Any = dense
    as_computed = as_computed.to(job.computed)
    show.time("dense", as_computed, Path(resolve(job.config.model)))
    del dense, as_computed
    gc.collect()
    checks.masked_vs_sliced = checks.compare("masked and sliced model", masked, promise.logits)
    checks.sliced_vs_reloaded = checks.compare("sliced and reloaded model", promise.logits, reloaded)
    job.model, _ = load_with_head(str(folder), head, device=job.device, dtype=job.computed)
