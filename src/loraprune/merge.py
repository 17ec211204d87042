"""Merge LoRA into the weights, save the model, and verify what was saved.

Three models must agree: the dense one with masks, the one in memory, and the one loaded from the folder.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.errors import VerificationError
from loraprune.evaluation.precision import compute_in_float32_, difference, logits_of, rounding_noise
from loraprune.evaluation.samples import Showcase
from loraprune.evaluation.tasks import probe_of
from loraprune.families.depth import numbered_as_before
from loraprune.groups import Group, Side
from loraprune.models.adapters import merge_lora
from loraprune.models.opening import resolve
from loraprune.models.quantised import dequantise_
from loraprune.models.saving import cast_weights_, round_weights_, save_model
from loraprune.models.stored_tensors import stored_tensors
from loraprune.plan import Plan
from loraprune.pruning.verify import Checks, UnitSums, check_units, masked_logits, unit_sums
from loraprune.training.setup import RunModel, RunSetup


@dataclass(frozen=True, slots=True)
class Merged:
    """The merged model before it was saved, to compare the folder with."""

    groups: tuple[Group, ...]
    """groups of the dense model that the plan is about"""
    plan: Plan
    sums: UnitSums
    changed: Collection[Side]
    """sides of projections whose frozen weights recovery changed"""
    logits: Float[Tensor, "..."]
    """of the probe, from weights in the file's precision"""
    dtype: torch.dtype
    """precision of computation: float32 if memory has room for it"""
    checks: Checks
    seconds: float
    """seconds that merging took"""


def merge(setup: RunSetup, run: RunModel) -> Merged:
    """Merge LoRA: `run` holds a model without adapters afterwards, its weights rounded to the precision of the file."""
    began = time.perf_counter()
    pruner, adapted, run.adapted = run.pruner, run.adapted, None
    assert adapted is not None
    groups = pruner.groups if pruner else setup.groups
    probe = probe_of(run.model)
    changed: Collection[Side] = pruner.config.changed if pruner else setup.config.pruning().changed
    sums = unit_sums(adapted, pruner.present if pruner else groups, changed=changed)
    dequantised = compute_in_float32_(adapted)
    before = logits_of(adapted, probe)
    run.model = merge_lora(adapted, dequantised)
    del adapted
    seconds = time.perf_counter() - began
    plan = pruner.plan if pruner else Plan.full(groups)
    if pruner:
        pruner.release()
    checks = Checks(run.model.dtype, rounding_noise(run.model, probe))
    merged = logits_of(run.model, probe)
    checks.adapted_vs_merged = checks.compare(
        "adapted and merged model", before, merged, rounded=setup.config.quantize == "8bit" and not dequantised
    )
    round_weights_(run.model, run.dense.stored)
    logits = logits_of(run.model, probe)
    checks.rounding = difference(merged, logits)
    return Merged(groups, plan, sums, changed, logits, run.model.dtype, checks, seconds)


def save(setup: RunSetup, run: RunModel, merged: Merged, folder: Path) -> None:
    """Write the merged model with its tokenizer or image processor, and free its memory."""
    cast_weights_(run.model, run.dense.stored)
    save_model(
        run.model, folder, config=run.dense.config, groups=merged.groups, counts=merged.plan.counts(), dtype=run.dense.stored,
        max_shard_size=setup.config.max_shard_size,
    )  # fmt: skip
    run.free()
    setup.data.processor.save_pretrained(folder)


@contextmanager
def checked(checks: Checks) -> Iterator[None]:
    """Raise one error for all checks that failed while the block finished the folder; what hours of training gave is kept.

    Raises:
        VerificationError: for every check that failed, and for whatever else went wrong, except for an interruption.
    """
    try:
        yield
    except VerificationError:
        raise
    except Exception as error:
        raise VerificationError(f"the saved model could not be verified: {type(error).__name__}: {error}") from error
    if failed := checks.findings.problems():
        raise VerificationError("; ".join(failed))


def verify(setup: RunSetup, run: RunModel, merged: Merged, folder: Path, show: Showcase) -> None:
    """Compare the merged model with the masked dense model and with the one loaded from the folder, which `run` then holds.

    No two models are in memory at any time: the dense one is filled from the files, tensor by tensor.
    """
    dtype, plan, checks = merged.dtype, merged.plan, merged.checks
    saved = setup.load_saved(folder, dtype)
    probe = probe_of(saved)
    reloaded = logits_of(saved, probe)
    with tempfile.TemporaryDirectory(dir=folder.parent) as spare:
        stored = stored_tensors(saved, folder, Path(spare))
        del saved
        gc.collect()
        full, _ = setup.load_dense(run.dense.dtype, quantisation=setup.quantisation)
        dequantise_(full)
        if run.pruner:
            run.pruner.check_saved(folder, full)
        expected = unit_sums(full, merged.groups, plan=plan, changed=merged.changed)
        with checks.findings.check():
            check_units(expected, merged.sums, rounded=setup.config.quantize == "4bit")
        as_merged: Any = full  # rounded as the trained model was, then as precise as the other side
        as_merged.to(dtype)
        before = numbered_as_before({name: name for name in stored}, plan.counts())
        masked = masked_logits(full, stored.named(before), merged.groups, plan, probe)
    as_computed: Any = full
    as_computed = as_computed.to(run.dense.dtype)
    show.time("dense", as_computed, Path(resolve(setup.place)))
    del full, as_merged, as_computed
    gc.collect()
    checks.masked_vs_sliced = checks.compare("masked and sliced model", masked, merged.logits)
    checks.sliced_vs_reloaded = checks.compare("sliced and reloaded model", merged.logits, reloaded)
    run.model = setup.load_saved(folder, run.dense.dtype)
